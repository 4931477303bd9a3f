"""The coordinator's doctor: what it finds without a broker, and how it tells it."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.amqp import QUEUE_ARGUMENTS
from broker.amqp_look import QueueLook
from broker.checkup import Finding, Level
from broker.journal import Journal
from broker.ports import Ports
from broker.system import system_ports
from coordinator.broker_admin.certificates import CertificateAuthority
from coordinator.cli.main import main
from coordinator.config import Config
from coordinator.core import BEHAVIOUR
from coordinator.doctor import amqp as doctor_amqp
from coordinator.doctor import management as doctor_management
from coordinator.doctor.examine import examine, machine
from coordinator.entries import Turned, encode_entry
from coordinator.inputs import Moment, Started
from coordinator.keystore import Identity
from coordinator.setup import init
from tests.brokers import free_ports

QUEUE = "coordinator@3fa94c10"
DAY_S = 86_400.0


class WrongClock:
    """The machine's, set wrong."""

    def __init__(self, off_s: float) -> None:
        self._right = system_ports().clock
        self._off_s = off_s

    def monotonic_s(self) -> float:
        return self._right.monotonic_s()

    def wall_s(self) -> float:
        return self._right.wall_s() + self._off_s


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def identity(home: Path) -> Identity:
    """Of a federation whose broker is not there."""
    return init(system_ports(), home, Config(broker=f"mqtt://127.0.0.1:{free_ports(1)[0]}"))


async def served_once(home: Path, identity: Identity) -> None:
    """Leave a journal with one entry of now."""
    ports = system_ports()
    journal = Journal.open(ports.files, home / "journal", identity.federation)
    at = Moment(1.0, ports.clock.wall_s())
    journal.append(encode_entry(Turned(at=at, behaviour=BEHAVIOUR, input=Started(), facts=[])))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(journal.run(ports.offload))
        await journal.drain()
        running.cancel()
    journal.close()


def examined(home: Path, identity: Identity, ports: Ports | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in machine(home, identity, ports or system_ports())}


async def test_a_sound_machine_has_no_fault(home: Path, identity: Identity) -> None:
    await served_once(home, identity)
    found = examined(home, identity)
    assert set(found) == {"keys", "journal", "clock", "clock source", "disk"}
    assert not [finding for finding in found.values() if finding.level is Level.FAULT]
    assert "1 entries" in found["journal"].measured


async def test_a_clock_a_day_behind_the_journal_is_a_fault(home: Path, identity: Identity) -> None:
    await served_once(home, identity)
    found = examined(home, identity, replace(system_ports(), clock=WrongClock(-DAY_S)))["clock"]
    assert found.level is Level.FAULT
    assert "24 h before the newest entry of the journal" in found.measured


def test_a_key_that_others_may_read_is_a_fault_with_the_command_that_closes_it(
    home: Path, identity: Identity
) -> None:
    (home / "keys" / "root.key").chmod(0o644)
    found = examined(home, identity)["keys"]
    assert found.level is Level.FAULT
    assert f"chmod -R go-rwx {home / 'keys'}" in found.remedy


@pytest.mark.parametrize("name", ["ca.key", "roster.json", "coordinator-probe.key", "certificates/press.key"])
def test_a_secret_of_the_broker_that_others_may_read_is_a_fault_with_the_command_that_closes_it(
    home: Path, identity: Identity, name: str
) -> None:
    secret, servers = home / "broker" / name, home / "broker" / "server.key"
    secret.parent.mkdir(parents=True)
    servers.touch(0o640)
    secret.touch(0o600)
    assert "secret files" in examined(home, identity)["keys"].measured
    secret.chmod(0o640)
    found = examined(home, identity)["keys"]
    assert found.level is Level.FAULT
    assert f"`chmod go-rwx {secret}`" in found.remedy


async def test_a_damaged_journal_is_a_fault(home: Path, identity: Identity) -> None:
    await served_once(home, identity)
    (path,) = (home / "journal").iterdir()
    path.write_bytes(b"\0" * 64 + path.read_bytes()[64:])
    assert examined(home, identity)["journal"].level is Level.FAULT


@pytest.mark.usefixtures("identity")
def test_the_command_fails_when_something_is_at_fault_and_names_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--dir", str(home), "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["ok"] is False
    assert [finding["name"] for finding in document["findings"] if finding["level"] == "fault"] == ["broker"]
    assert "at fault: broker" in err
    assert err.count("\n") == 1
    assert main(["doctor", "--dir", str(home)]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("fault"))
    assert "cannot be reached" in lines[at]
    assert "start the broker" in lines[at + 1]


def test_an_embedded_broker_that_rests_is_no_fault(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(system_ports(), home, Config(broker=f"embedded:{free_ports(1)[0]}"))
    assert main(["doctor", "--dir", str(home)]) == 0
    assert f"fedbus-coordinator serve --dir {home}" in capsys.readouterr().out


async def test_a_certificate_of_our_own_that_has_expired_is_a_fault(tmp_path: Path) -> None:
    long_ago = replace(system_ports(), clock=WrongClock(-1_000 * DAY_S))
    authority = CertificateAuthority(long_ago, tmp_path)
    authority.ensure("test")
    leaf = authority.client(tmp_path / "own.crt", QUEUE)
    url = f"mqtts://127.0.0.1:{free_ports(1)[0]}"
    config = Config(broker=url, certificate=str(leaf.certificate), key=str(leaf.key))
    identity = init(system_ports(), tmp_path / "home", config)
    examined = examine(tmp_path / "home", config, identity, system_ports())
    found = {finding.name: finding async for finding in examined}["own certificate"]
    assert found.level is Level.FAULT
    assert "expired 175 days ago" in found.measured
    assert "--client-certificates" in found.remedy


def of_queue(found: QueueLook, *, serving: bool = False) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor_amqp.queue(QUEUE, found, serving=serving)}


def test_a_queue_as_it_must_be_is_no_fault() -> None:
    right = QueueLook("RabbitMQ 3.10.8", exists=True, messages=3, differences={})
    assert {finding.level for finding in of_queue(right).values()} == {Level.OK}
    assert {finding.level for finding in of_queue(replace(right, consumers=1), serving=True).values()} == {
        Level.OK
    }


def test_a_missing_queue_is_a_fault_with_the_command_that_makes_it() -> None:
    found = of_queue(QueueLook("RabbitMQ 3.10.8", exists=False))["queue"]
    assert found.level is Level.FAULT
    assert "fedbus-coordinator broker rabbitmq" in found.remedy


@pytest.mark.parametrize(
    ("differences", "level", "words"),
    [
        ({"x-queue-type": "none", "x-overflow": "none"}, Level.FAULT, "x-queue-type = classic"),
        ({"x-overflow": "drop-head"}, Level.FAULT, "x-overflow = drop-head"),
        ({"durable": "false"}, Level.FAULT, "durable = false"),
        ({"x-max-length-bytes": "none"}, Level.WARNING, "x-max-length-bytes = none"),
    ],
)
def test_another_queue_than_it_must_be_is_found_with_what_to_declare(
    differences: dict[str, str], level: Level, words: str
) -> None:
    found = of_queue(QueueLook("RabbitMQ 3.10.8", exists=True, differences=differences))["queue"]
    assert found.level is level
    assert words in found.measured
    assert f"rabbitmqctl delete_queue {QUEUE}" in found.remedy
    for name in differences:
        assert f"{name} = {QUEUE_ARGUMENTS.get(name, 'true')}" in found.remedy


@pytest.mark.parametrize(("serving", "consumers"), [(False, 1), (True, 2), (True, 0)])
def test_readers_of_the_queue_that_are_not_the_coordinator_are_a_fault(serving: bool, consumers: int) -> None:
    looked = QueueLook("RabbitMQ 3.10.8", exists=True, consumers=consumers, differences={})
    assert of_queue(looked, serving=serving)["readers"].level is Level.FAULT


@pytest.mark.parametrize(
    ("alarm", "line"),
    [("mem_alarm", "vm_memory_high_watermark"), ("disk_free_alarm", "disk_free_limit")],
)
def test_an_alarm_is_a_fault_with_the_line_that_bounds_it(alarm: str, line: str) -> None:
    nodes = [
        {"name": "rabbit@a", "mem_alarm": False, "disk_free_alarm": False},
        {"name": "rabbit@b", "mem_alarm": False, "disk_free_alarm": False, alarm: True},
    ]
    (found,) = doctor_management.alarms(nodes)
    assert found.level is Level.FAULT
    assert "rabbit@b" in found.measured
    assert line in found.remedy
    (calm,) = doctor_management.alarms(nodes[:1])
    assert calm.level is Level.OK
    (silent,) = doctor_management.alarms([{"name": "rabbit@c"}])
    assert silent.level is Level.UNKNOWN


@pytest.mark.parametrize(
    ("addresses", "url", "levels"),
    [
        (["127.0.0.1", "::1"], "amqp://localhost", [Level.OK]),
        (["::", "127.0.0.1"], "amqp://localhost", [Level.WARNING]),
        (["10.0.0.8", "10.0.0.7"], "mqtt://hub", [Level.WARNING, Level.WARNING]),
        (["::"], "amqps://hub", [Level.UNKNOWN]),
        ([], "mqtt://hub", []),
    ],
)
def test_amqp_that_is_open_to_devices_is_told_with_the_line_that_closes_it(
    addresses: list[str], url: str, levels: list[Level]
) -> None:
    listeners = [{"protocol": "amqp/ssl", "ip_address": address, "port": 5671} for address in addresses]
    listeners.append({"protocol": "mqtt", "ip_address": "::", "port": 1883})
    found = list(doctor_management.ports(listeners, url))
    assert [finding.level for finding in found] == levels
    for finding in found:
        if finding.level is not Level.OK:
            assert f"port 5671 of {addresses[0]}" in found[0].measured
            assert ("firewall" if url.startswith("amqps") else "`listeners.ssl.default = ") in finding.remedy


@pytest.mark.parametrize(
    ("pattern", "definition", "level"),
    [
        ("^coordinator@", {"max-length": 1_000}, Level.FAULT),
        ("^mqtt-subscription-", {"message-ttl": 1, "ha-mode": "all"}, Level.FAULT),
        (".*", {"expires": 1}, Level.FAULT),
        ("(", {"max-length-bytes": 1}, Level.FAULT),
        (".*", {"ha-mode": "all"}, Level.OK),
        ("^orders$", {"max-length": 1_000}, Level.OK),
    ],
)
def test_a_policy_that_drops_what_waits_in_our_queues_is_a_fault(
    identity: Identity, pattern: str, definition: dict[str, object], level: Level
) -> None:
    policy = {"name": "theirs", "pattern": pattern, "apply-to": "queues", "definition": definition}
    found = list(doctor_management.policies([policy], "/", identity.federation))
    assert [finding.level for finding in found] == ([level] if level is Level.FAULT else [])
    for finding in found:
        assert "`rabbitmqctl clear_policy -p / theirs`" in finding.remedy


def test_of_policies_that_match_only_the_one_that_applies_is_told(identity: Identity) -> None:
    harmless: dict[str, Any] = {"name": "ours", "pattern": ".*", "apply-to": "all", "definition": {}}
    bounding = harmless | {"name": "their own", "definition": {"max-length": 9}}
    for below, above, level in ((bounding, harmless, Level.OK), (harmless, bounding, Level.FAULT)):
        known = [below | {"priority": 1}, above | {"priority": 2}]
        found = list(doctor_management.policies(known, "a b", identity.federation, "operator_policy"))
        assert len(found) == (level is Level.FAULT)
        for finding in found:
            assert "operator policy 'their own'" in finding.measured
            assert "`rabbitmqctl clear_operator_policy -p 'a b' 'their own'`" in finding.remedy


@pytest.mark.usefixtures("identity")
def test_another_users_federation_is_left_alone(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, owner = sorted(home.iterdir()), home.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert main(["doctor", "--dir", str(home)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{home} belongs to" in err
    assert "`sudo -u " in err
    assert sorted(home.iterdir()) == before
