"""The device's doctor with a broker: its session, what waits in it, and whether the coordinator answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from broker.bus import Bus, Connected, Credentials, Delivery
from broker.checkup import Level
from broker.connect import connect
from broker.system import system_ports
from edge_agent import doctor
from edge_agent.identity import Identity
from schemas.events import RequestRef, StateReply, StateRequest
from schemas.ids import broker_user
from tests.brokers import Mosquitto, free_ports
from tests.edge_agent.answering import AnsweringBus, Arrived
from tests.edge_agent.federation import Federation
from tests.edge_agent.test_doctor import faults, findings, full_ports, member


@contextmanager
def at_mosquitto(tmp_path: Path, password: str = "secret", rules: bool = True) -> Iterator[Identity]:
    broker = Mosquitto(tmp_path / "mosquitto", Mosquitto.USERS)
    own = member(tmp_path / "home", f"mqtt://127.0.0.1:{broker.port}")
    user = broker_user(own.federation, own.device)
    broker.admit(user, password, [own.up_topic] if rules else ["#"], [own.down_topic])
    broker.admit("coordinator", "secret", [own.down_topic], [own.up_topic])
    with broker:
        yield own


@pytest.mark.live
async def test_a_password_that_the_broker_refuses_is_a_fault(tmp_path: Path) -> None:
    with at_mosquitto(tmp_path, password="another"):
        found = (await faults(tmp_path / "home"))["login"]
    assert "password" in found.remedy


@pytest.mark.live
async def test_silence_is_a_fault_that_names_both_topics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ANSWER_S", 0.5)
    with at_mosquitto(tmp_path) as own:
        found = await findings(tmp_path / "home")
    assert found["login"].level is Level.OK
    assert found["coordinator"].level is Level.FAULT
    assert own.up_topic in found["coordinator"].remedy
    assert own.down_topic in found["coordinator"].remedy


@pytest.mark.live
@pytest.mark.parametrize("lock", [True, False])
async def test_a_full_disk_is_a_finding_wherever_it_is_met(tmp_path: Path, lock: bool) -> None:
    with at_mosquitto(tmp_path):
        found = await findings(tmp_path / "home", ports=full_ports(lock=lock))
    assert found["state directory"].level is Level.FAULT
    assert {"membership", "disk", "settings", "broker", "tasks"} <= set(found), "all else is told"
    assert ("login" in found) is not lock


@asynccontextmanager
async def coordinator(own: Identity, federation: Federation) -> AsyncIterator[Bus]:
    """Answers the device's questions for its state."""
    credentials = Credentials("coordinator", "coordinator", "secret")
    async with connect(own.urls[0], credentials, [own.up_topic], ports=system_ports()) as bus:
        arrivals = bus.incoming()
        assert isinstance(await anext(arrivals), Connected)

        async def answer() -> None:
            async for asked in arrivals:
                if not isinstance(asked, Connected):
                    await answer_one(bus, asked, own, federation)

        async with asyncio.TaskGroup() as group:
            answering = group.create_task(answer())
            yield bus
            answering.cancel()


async def answer_one(bus: Bus, asked: Delivery, own: Identity, federation: Federation) -> None:
    event = federation.read(own, asked.payload)
    assert isinstance(event, StateRequest)
    await bus.publish(own.down_topic, reply(own, federation, event.requests))
    await asked.ack()


def reply(own: Identity, federation: Federation, closed: list[RequestRef]) -> bytes:
    return federation.envelope(own, StateReply(requests=[], closed=closed))


@pytest.mark.live
async def test_a_doctor_that_looks_often_leaves_no_answer_in_the_session(tmp_path: Path) -> None:
    federation = Federation()
    with at_mosquitto(tmp_path) as own:
        async with coordinator(own, federation):
            for _ in range(25):
                found = (await findings(tmp_path / "home"))["coordinator"]
                assert found.level is Level.OK, found


@pytest.mark.live
async def test_whether_a_device_may_speak_in_the_coordinators_place_is_tried_out(tmp_path: Path) -> None:
    federation = Federation()
    with at_mosquitto(tmp_path) as own:
        async with coordinator(own, federation):
            found = (await findings(tmp_path / "home"))["access rules"]
    assert found.level is Level.OK
    with at_mosquitto(tmp_path / "open", rules=False) as own:
        async with coordinator(own, federation):
            for _ in range(2):
                found = (await findings(tmp_path / "open" / "home"))["access rules"]
                assert found.level is Level.FAULT
    assert "in the coordinator's place" in found.measured
    assert "`fedbus-coordinator doctor`" in found.remedy


class LateBus(AnsweringBus):
    """Hands out what waited for the session only once it is connected, as over AMQP."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.old = Arrived(reply(Federation().member(), self.federation, [RequestRef("job", 1)]))
        self.queue.put_nowait(self.old)
        return self

    async def publish(self, topic: str, payload: bytes) -> None:
        """Nobody serves."""


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def test_an_answer_to_an_older_question_is_none_and_leaves_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = member(tmp_path, f"mqtt://127.0.0.1:{free_ports(1)[0]}")
    bus = LateBus(Federation())
    monkeypatch.setattr(doctor, "bus_for", lambda *_: bus)
    monkeypatch.setattr(doctor, "ANSWER_S", 0.5)
    async with await asyncio.start_server(hang_up, "127.0.0.1", urlsplit(own.urls[0]).port):
        found = (await findings(tmp_path))["coordinator"]
    assert found.level is Level.FAULT, "the coordinator does not serve"
    assert "and 0 other messages" in found.measured
    assert bus.old.acked


@pytest.mark.live
async def test_messages_that_fill_the_window_are_not_taken_for_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, home = Federation(), tmp_path / "home"
    with at_mosquitto(tmp_path) as own:
        async with coordinator(own, federation) as bus:
            assert (await findings(home))["coordinator"].level is Level.OK
            for _ in range(30):
                await bus.publish(own.down_topic, b"for the agent")
            monkeypatch.setattr(doctor, "ANSWER_S", 0.5)
            found = (await findings(home))["coordinator"]
    assert found.level is Level.UNKNOWN
    assert "20 messages wait for the agent and fill its window" in found.measured
    assert "run the agent" in found.remedy
