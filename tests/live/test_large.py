"""Models and updates of 100 MB, both ways, over connections that break and a coordinator that is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.memory import MemoryBroker
from broker.system import system_ports
from schemas.chunks import MAGIC
from schemas.limits import CHUNK_BYTES_DEFAULT, GRANT_BYTES_MAX
from tests.residents import Resident
from tests.standin import Federation, spec
from tests.watch import Watch

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

COUNT = 25_000_000  # parameters: 100 MB
CHUNKS = -(-4 * COUNT // CHUNK_BYTES_DEFAULT)


def held_bytes(broker: MemoryBroker) -> int:
    """Chunks that the broker holds for anybody, delivered but unacknowledged ones included."""
    total = 0
    for session in broker._sessions.values():
        payloads = [payload for _, payload in session.queue] + [held.payload for held in session.unacked]
        total += sum(len(payload) for payload in payloads if payload.startswith(MAGIC))
    return total


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

    async def came(way: str, chunks: int) -> None:
        await fed.until(lambda: watch.came(way) > chunks)

    watch.look = look
    async with asyncio.TaskGroup() as tasks:
        fed.start(tasks)
        device = Resident(fed, "press-07", COUNT)
        await device.enrol()
        agent = tasks.create_task(device.run(), name="agent")
        await fed.command("submit", spec=spec(deadline_s=3_600.0, update_norm_max=1e9))
        for way in ("down", "up"):
            await came(way, CHUNKS // 4)
            fed.broker.disconnect("press-07")
            await asyncio.sleep(0.5)
            fed.broker.restore("press-07")
            await came(way, CHUNKS // 2)
            await fed.restart(tasks)
        await fed.until(lambda: device.ledger().verdict is not None)
        agent.cancel()
        await fed.stop()
    assert watch.sent_in_vain == []
    assert watch.came("up") == CHUNKS
    assert 0 < peak_bytes <= GRANT_BYTES_MAX
