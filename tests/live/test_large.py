"""Models and updates of 100 MB, both ways, over connections that break and a coordinator that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.memory import MemoryBroker
from broker.system import system_ports
from coordinator.config import Config
from schemas.chunks import MAGIC
from schemas.limits import CHUNK_BYTES_DEFAULT, GRANT_BYTES_MAX
from tests.brokers import Mosquitto
from tests.contract.proxy import Proxy
from tests.residents import Resident
from tests.standin import Federation, spec
from tests.watch import Watch

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

COUNT = 25_000_000  # parameters: 100 MB
CHUNKS = -(-4 * COUNT // CHUNK_BYTES_DEFAULT)
PATIENCE_S = 120.0
JOB = spec(deadline_s=3_600.0, update_norm_max=1e9)


def held_bytes(broker: MemoryBroker) -> int:
    """Chunks that the broker holds for anybody, delivered but unacknowledged ones included."""
    total = 0
    for session in broker._sessions.values():
        payloads = [payload for _, payload in session.queue] + [held.payload for held in session.unacked]
        total += sum(len(payload) for payload in payloads if payload.startswith(MAGIC))
    return total


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


async def came(watch: Watch, way: str, chunks: int) -> None:
    await until(lambda: watch.came(way) > chunks)


async def test_what_arrived_is_not_sent_again_and_the_broker_holds_no_more_than_the_credit(
    tmp_path: Path,
) -> None:
    watch, peak_bytes = Watch(), 0
    fed = Federation(tmp_path / "c", system_ports(), COUNT, around=watch.around)

    def look() -> None:
        nonlocal peak_bytes
        peak_bytes = max(peak_bytes, held_bytes(fed.broker))
        for credit in (fed.coordinator.intake.uploads.credits, fed.coordinator._dispatch.downlink.credits):
            assert 0 <= credit.granted_bytes <= GRANT_BYTES_MAX

    watch.look = look
    async with asyncio.TaskGroup() as tasks:
        fed.start(tasks)
        device = Resident(fed, "press-07", COUNT)
        await device.enrol()
        agent = tasks.create_task(device.run(), name="agent")
        await fed.command("submit", spec=JOB)
        for way in ("down", "up"):
            await came(watch, way, CHUNKS // 4)
            fed.broker.disconnect("press-07")
            await asyncio.sleep(0.5)
            fed.broker.restore("press-07")
            await came(watch, way, CHUNKS // 2)
            await fed.restart(tasks)
        await until(lambda: device.ledger().verdict is not None)
        agent.cancel()
        await fed.stop()
    assert watch.sent_in_vain == []
    assert watch.came("up") == CHUNKS
    assert 0 < peak_bytes <= GRANT_BYTES_MAX


async def test_at_a_real_broker_they_go_on_after_breaks_and_after_the_coordinator_was_killed(
    tmp_path: Path,
) -> None:
    watch = Watch()
    with Mosquitto(tmp_path / "broker", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
        async with Proxy(broker.port) as line, asyncio.TaskGroup() as tasks:
            near, far = (f"mqtt://127.0.0.1:{port}" for port in (broker.port, line.port))
            config = Config(broker=near, device_urls=[far])
            fed = Federation(
                tmp_path / "c", system_ports(), COUNT, config=config, admit=broker.admit, around=watch.around
            )
            fed.start(tasks)
            device = Resident(fed, "press-07", COUNT)
            await device.enrol()
            agent = tasks.create_task(device.run(), name="agent")
            await fed.command("submit", spec=JOB)
            for way in ("down", "up"):
                await came(watch, way, CHUNKS // 4)
                line.snap()
                await came(watch, way, CHUNKS // 2)
                await fed.restart(tasks)
            await until(lambda: device.ledger().verdict is not None)
            agent.cancel()
            await fed.stop()
    verdict = device.ledger().verdict
    assert verdict is not None
    assert verdict.folded
    assert (watch.came("down"), watch.came("up")) == (CHUNKS, CHUNKS)
    assert watch.sent_in_vain == []
