"""Brokers that deny or drop messages, mostly without a word to the sender: where it shows, and that what has
no receipt comes again until it is counted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from broker.checkup import Level
from broker.system import system_ports
from edge_agent import doctor
from tests.brokers import Mosquitto
from tests.live.mqtt_client import Client
from tests.live.plant import INLINE, Door, Plant, mosquitto_door, rabbitmq_door, until

pytestmark = [pytest.mark.live, pytest.mark.slow]

QUEUED_MAX = 1_000
"""What Mosquitto keeps by default for a session that is away."""


@pytest.fixture(params=["mosquitto", "rabbitmq, mqtt", "rabbitmq, amqp"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def door(way: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    if way == "mosquitto":
        with Mosquitto(tmp_path / "broker", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
            yield mosquitto_door(broker)
    else:
        _, protocol = way.split(", ")
        yield rabbitmq_door(request.getfixturevalue("rabbitmq"), protocol, protocol)


async def test_a_device_that_may_not_speak_is_told_where_its_broker_tells_and_by_its_doctor(
    way: str, door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(doctor, "ANSWER_S", 1.0)
    async with Plant(tmp_path, door) as plant:
        await plant.train()
        await plant.stop_agents()
        mute = plant.residents[0]
        for resident in (mute, plant.spare):
            door.change(resident.session, publish=[])
        plant.start_agents()
        plant.go_on()
        await plant.made()
        topic = plant.up(mute)
        await until(partial(told, caplog, refusal(way, mute.session, topic)))
        found = {f.name: f async for f in doctor.examine(plant.spare.directory, system_ports(), {})}
        assert found["coordinator"].level is Level.FAULT
        assert (
            f"that the broker lets this device write {plant.up(plant.spare)}" in found["coordinator"].remedy
        )
        for resident in (mute, plant.spare):
            door.restore(resident.session)
        await plant.finish()


async def test_a_coordinator_that_may_not_speak_is_told_and_sends_again_what_was_not_taken(
    way: str, door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Plant(tmp_path, door) as plant:
        await plant.train()
        await plant.federation.stop()
        door.change(plant.session, publish=[])
        await plant.restart()
        plant.go_on()
        await plant.made()
        topic = plant.down(plant.residents[0])
        await until(partial(told, caplog, refusal(way, plant.session, topic)))
        assert (await plant.federation.command("status"))["dropped_messages"]
        door.restore(plant.session)
        await plant.restart()
        await plant.finish()


def refusal(way: str, user: str, topic: str) -> str:
    """What is said where a message is denied. MQTT 3.1.1 has no words for it: the broker hangs up."""
    if way == "rabbitmq, amqp":
        return f"user '{user}' may not publish to {topic}; check the access rules"
    return f"before it answered for {topic}; if that goes on, check the access rules for user '{user}'"


def told(log: pytest.LogCaptureFixture, text: str) -> bool:
    return text in log.text


async def test_what_mosquitto_drops_at_its_defaults_is_sent_again(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "broker", Mosquitto.USERS) as broker:
        door = mosquitto_door(broker)
        async with Plant(tmp_path, door, count=INLINE) as plant:
            await plant.train()
            await plant.federation.stop()
            broker.admit("filler", "secret")
            with Client(broker.port, "filler", "secret") as filler:
                filler.publish(plant.up(plant.spare), *[b"x"] * QUEUED_MAX)
            plant.go_on()
            await plant.made()
            dropped = f"Outgoing messages are being dropped for client {plant.session}"
            await until(lambda: dropped in broker.log.read_text())
            with plant.serve() as serving:
                await serving.says("the broker drops messages", "`max_queued_messages 0` in mosquitto.conf")
            await plant.restart()
            await plant.finish()
