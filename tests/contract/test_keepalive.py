"""MQTT's sign of life: a connection that is slow is left alone, one to a broker that hangs is given up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from broker import mqtt_client
from broker.bus import Bus, BusLost, Connected, Credentials
from broker.connect import connect
from broker.system import system_ports
from tests.brokers import Mosquitto, RabbitMQ
from tests.contract.problems import problem
from tests.contract.transports import PATIENCE_S, Peer
from tests.slow_link import SlowLink

pytestmark = pytest.mark.live

KEEPALIVE_S = 5
"""So long that a busy machine, which runs brokers and test, gets around to its pings."""
BYTES_PER_S = 100_000
SLOW = bytes(3 * KEEPALIVE_S * BYTES_PER_S)
"""Takes longer than an answer is waited for, and only a part of it fits into the system's buffers."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_client, "KEEPALIVE_S", KEEPALIVE_S)


def bus_to(port: int, name: str, *subscriptions: str) -> Bus:
    url = f"mqtt://{name}:right@127.0.0.1:{port}"
    return connect(url, Credentials(name), subscriptions, ports=system_ports())


@pytest.fixture(params=["mosquitto", "rabbitmq"])
def port(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    if request.param == "rabbitmq":
        node: RabbitMQ = request.getfixturevalue("rabbitmq")
        for name in ("near", "far"):
            node.operator.admit(name, "right")
        yield node.mqtt
    else:
        with Mosquitto(tmp_path) as broker:
            yield broker.port


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_message_may_take_longer_than_an_answer_is_waited_for(
    port: int, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        SlowLink(port, BYTES_PER_S) as link,
        bus_to(link.port, "far", "down") as far,
        bus_to(port, "near", "up") as near,
    ):
        sender, receiver = (Peer(bus) for bus in ((far, near) if way == "up" else (near, far)))
        for peer in (sender, receiver):
            assert await peer.connected() == Connected(1)
        await sender.publish(way, SLOW)
        assert [delivery.payload for delivery in await receiver.take(1)] == [SLOW]
    assert "broke" not in caplog.text


async def test_a_broker_that_hangs_is_given_up_although_its_system_takes_what_is_sent(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        async with asyncio.timeout(PATIENCE_S), bus_to(broker.port, "near", "up") as bus:
            await Peer(bus).connected()
            broker.process.send_signal(signal.SIGSTOP)
            try:
                async with asyncio.TaskGroup() as group:
                    chatting = group.create_task(chat(bus), name="chat")
                    await problem(bus, "Keep alive timeout")
                    chatting.cancel()
            finally:
                broker.process.send_signal(signal.SIGCONT)


async def chat(bus: Bus) -> None:
    """Send a little, again and again, answered or not."""
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(say(bus), name="say")
            await asyncio.sleep(KEEPALIVE_S / 10)


async def say(bus: Bus) -> None:
    with suppress(BusLost):
        await bus.publish("x", b"x")
