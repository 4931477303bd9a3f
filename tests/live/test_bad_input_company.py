"""Others at a broker without rules: a federation with devices of the same names, and a stranger who repeats
everything to everybody. Both sides count and log what is not theirs; every update counts once."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.config import Config
from edge_agent import listen
from tests.brokers import Mosquitto, RabbitMQ
from tests.live.mqtt_client import Client
from tests.live.plant import INLINE, Door, Plant, rabbitmq_door, until

pytestmark = [pytest.mark.live, pytest.mark.slow]

GARBAGE = [b"", b"x", b"FBE1" + bytes(200), b"FBC1" + bytes(40), b"FBJ1" + bytes(300), bytes(1 << 20)]


@dataclass
class Hall:
    """A broker, the ways in for two federations and a stranger, and what else the stranger can do there."""

    doors: list[Door]
    port: int
    put: Callable[[str, bytes], object] = lambda queue, payload: None
    """Put a message straight into a queue."""


@pytest.fixture(params=["mosquitto", "rabbitmq"])
def hall(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hall]:
    if request.param == "mosquitto":
        with Mosquitto(tmp_path / "broker") as broker:
            config = Config(broker=f"mqtt://127.0.0.1:{broker.port}")
            yield Hall([Door(config, lambda *_, **__: None) for _ in range(2)], broker.port)
        return
    node: RabbitMQ = request.getfixturevalue("rabbitmq")

    def put(queue: str, payload: bytes) -> None:
        text = base64.b64encode(payload).decode()
        letter = {"properties": {}, "routing_key": queue, "payload": text, "payload_encoding": "base64"}
        assert node.operator.call("POST", "exchanges/%2F/amq.default/publish", letter) == {"routed": True}

    yield Hall([rabbitmq_door(node) for _ in range(2)], node.mqtt, put)


async def test_two_federations_and_a_stranger_do_not_disturb_each_other(
    hall: Hall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listen, "COMPLAIN_EVERY_S", math.inf)
    with Client(hall.port, "guest", "guest", client_id="stranger") as stranger:
        stranger.subscribe("fedbus/#")
        async with (
            Plant(tmp_path / "ours", hall.doors[0], count=INLINE) as ours,
            Plant(tmp_path / "theirs", hall.doors[1], count=INLINE) as theirs,
        ):
            for plant in (ours, theirs):
                await plant.train()
            await asyncio.to_thread(shout, hall, stranger, [ours, theirs])
            for plant in (ours, theirs):
                plant.go_on()
            await until(
                lambda: all(len(plant.federation.job("job").versions) > 1 for plant in (ours, theirs))
            )
            await asyncio.to_thread(shout, hall, stranger, [ours, theirs])
            for plant in (ours, theirs):
                await plant.finish()
                counts = plant.federation.coordinator.intake.dead.counts
                assert {"malformed", "orphan", "forged", "sender", "replayed"} <= set(counts)
    for kind in ("malformed", "forged"):
        lines = [line for line in caplog.messages if f"a message was dropped ({kind})" in line]
        assert len(lines) == 2, "one for each agent that was shouted at, however much came"
        assert "others write to this device's topic: check the broker's access rules" in lines[0]


def shout(hall: Hall, stranger: Client, plants: list[Plant]) -> None:
    """Garbage, and all that was heard since the last time, on topics of everybody."""
    heard = {payload for _, payload in stranger.received if payload not in GARBAGE}
    stranger.received.clear()
    for plant in plants:
        device = plant.residents[0]
        for topic in (plant.up(device), plant.down(device)):
            stranger.publish(topic, *GARBAGE, *heard)
        for payload in GARBAGE:
            hall.put(plant.session, payload)
