"""A device on a thin line that is down a fifth of the time takes part, and sends no chunk in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.system import system_ports
from coordinator.config import Config
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN
from tests.brokers import Admit, Mosquitto, RabbitMQ
from tests.residents import Resident
from tests.slow_link import SlowLink
from tests.standin import Federation, spec
from tests.watch import Watch

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

BYTES_PER_S = 50_000
CHUNKS = 18  # two outages on the way down, two on the way up
COUNT = CHUNKS * CHUNK_BYTES_CHOSEN_MIN // 4
EVERY_BYTES, OUT_S = 520_000, 2.75  # a fifth of the time: so many bytes take 10.4 s
PATIENCE_S = 200.0


Door = tuple[int, Admit]  # a broker's port for MQTT, and how users are let in


@pytest.fixture(params=["mosquitto", "rabbitmq"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    if request.param == "rabbitmq":
        node: RabbitMQ = request.getfixturevalue("rabbitmq")
        yield node.mqtt, node.operator.admit
    else:
        with Mosquitto(tmp_path / "broker", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
            yield broker.port, broker.admit


async def test_a_chunk_that_had_arrived_is_never_sent_again(door: Door, tmp_path: Path) -> None:
    watch, (port, admit) = Watch(), door
    async with SlowLink(port, BYTES_PER_S) as link, asyncio.TaskGroup() as tasks:
        near, far = (f"mqtt://127.0.0.1:{number}" for number in (port, link.port))
        config = Config(broker=near, device_urls=[far])
        fed = Federation(
            tmp_path / "c", system_ports(), COUNT, config=config, admit=admit, around=watch.around
        )
        fed.start(tasks)
        device = Resident(fed, "press-07", COUNT)
        await device.enrol()
        weather = tasks.create_task(link.outages(EVERY_BYTES, OUT_S), name="outages")
        agent = tasks.create_task(device.run(), name="agent")
        job = spec(chunk_bytes=CHUNK_BYTES_CHOSEN_MIN, deadline_s=3_600.0, update_norm_max=1e9)
        await fed.command("submit", spec=job)
        async with asyncio.timeout(PATIENCE_S):
            while device.ledger().verdict is None:  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.1)
        for task in (weather, agent):
            task.cancel()
        await fed.stop()
    assert set(link.outages_met) == {(way, what) for way in ("up", "down") for what in ("cut", "frozen")}
    assert watch.sent_in_vain == []
    assert (watch.came("down"), watch.came("up")) == (CHUNKS, CHUNKS)
    assert set(watch.count("down")) == {1}, "what the broker has not delivered yet was not sent anew"
