"""`journal record` at each broker as our commands set it up: it records both ways, and may only read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import aiormq
import pytest
from aiormq import spec
from aiormq.exceptions import ChannelAccessRefused

from broker.amqp import EXCHANGE
from broker.bus import BusUndelivered
from broker.bus import Credentials as Session
from broker.journal import Journal
from broker.system import system_ports
from coordinator.cli.main import main
from coordinator.recovery import FOLDER
from coordinator.tap.entries import decode_tapped
from coordinator.tap.place import Credentials, read_credentials
from coordinator.tap.read import payload_of
from schemas import topics
from schemas.enrolment import JOIN_MAGIC, WELCOME_MAGIC, token_to_text
from schemas.ids import FederationId, broker_user
from tests.brokers import Mosquitto, RabbitMQ, free_ports
from tests.live import places
from tests.live.installation import Installation
from tests.live.mqtt_client import Client
from tests.live.places import MOLE, VICTIM, Place
from tests.live.plant import Program
from tests.live.test_isolation_amqp import Federation, heard

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["mosquitto", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp(request.param)
    with places.place(request.param, base, lambda: request.getfixturevalue("rabbitmq")) as made:
        yield made


def credentials(place: Place, name: str, base: Path) -> tuple[Path, Credentials]:
    """A new tap's, and the file that holds them."""
    file = base / f"{name}.tap"
    with place.ours.site as site:
        file.write_text(site.command("broker", "tap", name)["credentials"])
    return file, read_credentials(system_ports().files, file)


def recorded(folder: Path, who: Credentials) -> list[bytes]:
    journal = Journal.open(system_ports().files, folder / FOLDER, who.id, read_only=True)
    found = [payload_of(journal, decode_tapped(entry.data)) for entry in journal.entries()]
    journal.close()
    return [payload for payload in found if payload]


async def test_what_passes_is_recorded_and_reaches_its_readers_as_ever(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, folder = place.ours, tmp_path / "recording"
    file, who = credentials(place, "auditor", tmp_path)
    up, down = topics.up(ours.id, VICTIM), topics.down(ours.id, VICTIM)
    with ours.coordinator() as coordinator, ours.device(VICTIM) as victim:
        coordinator.subscribe(topics.all_up(ours.id))
        victim.subscribe(down)
        arguments = "journal", "record", str(folder), "--tap", str(file)
        with Program("coordinator.cli", *arguments, log=tmp_path / "record.log") as tap:
            await tap.says('"event": "recording"')
            for number in range(20):
                victim.publish(up, f"up {number}".encode())
                coordinator.publish(down, f"down {number}".encode())
            coordinator.wait_for(b"up 19")
            victim.wait_for(b"down 19")
            for theirs in (entry for entry in place.here if entry is not ours):
                with theirs.device(VICTIM) as stranger:
                    stranger.publish(topics.up(theirs.id, VICTIM), b"another federation's")
            victim.publish(up, b"last")
            coordinator.wait_for(b"last")
        assert "recorded 21 messages from devices and 20 to them" in tap.said
    expected = [f"{way} {number}".encode() for number in range(20) for way in ("up", "down")]
    assert sorted(recorded(folder, who)) == sorted([*expected, b"last"])
    capsys.readouterr()
    assert main(["journal", "verify", "--dir", str(folder), "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert (verified["whole"], verified["messages"]) == (True, 41)


def test_a_tap_can_publish_nothing_and_leave_no_will(place: Place, tmp_path: Path) -> None:
    ours = place.ours
    _, who = credentials(place, "mute", tmp_path)
    forbidden = [
        topics.up(ours.id, VICTIM),
        topics.down(ours.id, VICTIM),
        topics.up(ours.id, MOLE),
        topics.probe(ours.id),
        "plant/line-1",
    ]
    with ExitStack() as stack:
        coordinator = stack.enter_context(ours.coordinator())
        victim = stack.enter_context(ours.device(VICTIM))
        coordinator.subscribe(topics.all_up(ours.id))
        coordinator.subscribe(topics.probe(ours.id))
        victim.subscribe(topics.down(ours.id, VICTIM))
        for topic in forbidden:
            with Client(ours.port, who.user, who.password) as tap:
                assert not tap.refused
                tap.subscribe(topics.all_up(ours.id))
                victim.publish(topics.up(ours.id, VICTIM), f"before {topic}".encode())
                tap.wait_for(f"before {topic}".encode())
                with place.told_of(who.user, "publish", topic):
                    tap.publish(topic, b"denied")
        if place.keeps_wills:
            with Client(
                ours.port, who.user, who.password, will=(topics.down(ours.id, VICTIM), b"denied")
            ) as tap:
                tap.break_off()
        coordinator.publish(topics.down(ours.id, VICTIM), b"end")
        victim.publish(topics.up(ours.id, VICTIM), b"end")
        for watcher in (coordinator, victim):
            watcher.wait_for(b"end")
            assert b"denied" not in [payload for _, payload in watcher.received]


def test_a_tap_that_was_removed_is_shut_out(place: Place, tmp_path: Path) -> None:
    ours = place.ours
    _, who = credentials(place, "former", tmp_path)
    with Client(ours.port, who.user, who.password) as tap:
        assert not tap.refused
    with ours.site as site:
        assert site.command("broker", "tap", "former", "--remove")["state"] == "removed"
    with Client(ours.port, who.user, who.password) as tap:
        assert tap.refused


async def test_over_amqp_a_tap_reads_a_queue_of_its_own_and_publishes_nothing(
    rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    fed = Federation(tmp_path, rabbitmq)
    folder, file = tmp_path / "recording", tmp_path / "auditor.tap"
    with fed.site as site:
        file.write_text(site.command("broker", "tap", "auditor")["credentials"])
    who = read_credentials(system_ports().files, file)
    up, down = topics.up(fed.id, VICTIM), topics.down(fed.id, VICTIM)
    async with (
        fed.bus(fed.device(VICTIM), down) as victim,
        fed.bus(fed.coordinator, topics.all_up(fed.id)) as coordinator,
    ):
        arguments = "journal", "record", str(folder), "--tap", str(file), "--broker", fed.url
        with Program("coordinator.cli", *arguments, log=tmp_path / "record.log") as tap:
            await tap.says('"event": "recording"')
            for payload in (b"one", b"two", b"end"):
                await victim.publish(up, payload)
                await coordinator.publish(down, payload)
            assert await heard(coordinator) == [b"one", b"two", b"end"]
            assert await heard(victim) == [b"one", b"two", b"end"]
        assert "recorded 3 messages from devices and 3 to them" in tap.said
        assert sorted(recorded(folder, who)) == sorted([b"one", b"two", b"end"] * 2)
        session = Session("tap@auditor", who.user, who.password, durable=False)
        async with fed.bus(session) as mute:
            for topic in (up, down, "plant/line-1"):
                with pytest.raises(BusUndelivered):
                    await mute.publish(topic, b"denied")
        login = f"{quote(who.user, safe='')}:{who.password}"
        connection = await aiormq.connect(f"amqp://{login}@127.0.0.1:{rabbitmq.amqp}/")
        try:
            for exchange, key in (("", broker_user(fed.id, VICTIM)), (EXCHANGE, ""), ("amq.fanout", "")):
                raw = await connection.channel(publisher_confirms=True)
                copies = spec.Basic.Properties(headers={"BCC": [down.replace("/", ".")]})
                with pytest.raises(ChannelAccessRefused):
                    await raw.basic_publish(b"denied", exchange=exchange, routing_key=key, properties=copies)
        finally:
            await connection.close()
        await coordinator.publish(down, b"end")
        assert await heard(victim) == [b"end"]


async def test_a_tap_at_the_embedded_broker_hears_a_device(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    file, folder = tmp_path / "auditor.tap", tmp_path / "recording"
    with Installation(tmp_path / "fed", f"embedded:{port}") as site:
        file.write_text(site.command("broker", "tap", "auditor")["credentials"])
        who, token = read_credentials(system_ports().files, file), site.invite("press-07")[1]
        arguments = "journal", "record", str(folder), "--tap", str(file)
        with Program("coordinator.cli", *arguments, log=tmp_path / "record.log") as tap:
            await tap.says('"event": "recording"')
            assert site.enroll("press-07", token_to_text(token)).returncode == 0
        assert "from devices" in tap.said
    found = recorded(folder, who)
    assert any(payload.startswith(JOIN_MAGIC) for payload in found)
    assert any(payload.startswith(WELCOME_MAGIC) for payload in found)


async def test_a_broker_that_restarts_is_a_gap_and_the_recording_goes_on(tmp_path: Path) -> None:
    """At a broker without users, where only the federation's id is told."""
    federation, folder = FederationId(bytes(range(16))), tmp_path / "recording"
    up = topics.up(federation, VICTIM)
    with Mosquitto(tmp_path / "mosquitto") as broker:
        where = "--broker", f"mqtt://127.0.0.1:{broker.port}", "--federation", federation.hex()
        arguments = "journal", "record", str(folder), *where
        with Program("coordinator.cli", *arguments, log=tmp_path / "record.log") as tap:
            await tap.says('"event": "recording"')
            with Client(broker.port, VICTIM, "") as device:
                device.publish(up, b"before")
            broker.stop()
            broker.start()
            await tap.says("what passed in the last seconds may be missing")
            with Client(broker.port, VICTIM, "") as device:
                device.publish(up, b"behind")
        assert "recorded 2 messages from devices and 0 to them, 0.0 MiB; 1 gap" in tap.said
        with Program("coordinator.cli", *arguments[:5], log=tmp_path / "again.log") as tap:
            await tap.says("what passed in the last seconds may be missing")  # whose, its folder tells
    journal = Journal.open(system_ports().files, folder / FOLDER, federation, read_only=True)
    entries = [decode_tapped(entry.data) for entry in journal.entries()]
    journal.close()
    assert [payload_of(journal, entry) for entry in entries] == [b"", b"before", b"", b"behind", b""]
