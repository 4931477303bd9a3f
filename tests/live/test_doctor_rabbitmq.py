"""The coordinator's doctor at RabbitMQ: deliberately wrong, each fault told with the change, and right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from broker.amqp import QUEUE_ARGUMENTS
from broker.checkup import Level
from coordinator.cli.main import main
from coordinator.config import MANAGEMENT_PASSWORD
from tests.brokers import RabbitMQ, free_ports, until
from tests.coordinator.test_doctor import DAY_S, WrongClock
from tests.live.sites import Site

pytestmark = pytest.mark.live


def at_rabbitmq(tmp_path: Path, node: RabbitMQ, protocol: str, management: str = "") -> Site:
    port = node.amqp if protocol == "amqp" else node.mqtt
    site = Site.make(tmp_path / "home", f"{protocol}://127.0.0.1:{port}", management=management)
    node.operator.admit(site.user, "secret", site.may_write, site.may_read)
    return site


def managed(tmp_path: Path, node: RabbitMQ, protocol: str = "amqp") -> Site:
    site = at_rabbitmq(tmp_path, node, protocol, f"http://guest@127.0.0.1:{node.management}")
    (site.directory / MANAGEMENT_PASSWORD).write_text("guest")
    (site.directory / MANAGEMENT_PASSWORD).chmod(0o600)
    return site


@pytest.mark.parametrize("protocol", ["amqp", "mqtt"])
async def test_a_right_rabbitmq_has_no_fault(tmp_path: Path, rabbitmq: RabbitMQ, protocol: str) -> None:
    site = managed(tmp_path, rabbitmq, protocol)
    if protocol == "amqp":
        rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    found = await site.findings()
    assert [finding for finding in found.values() if finding.level is Level.FAULT] == []
    assert found["ports"].measured == "AMQP is open to RabbitMQ's own machine only"
    expected = {"queue", "readers"} if protocol == "amqp" else {"queue length", "queue bytes"}
    assert expected | {"login", "alarms", "policies", "clock compared", "message size"} <= set(found)
    assert "tells the sender" in found["access rules"].measured


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (None, "there is no queue"),
        ({}, "x-queue-type = classic"),
        (QUEUE_ARGUMENTS | {"x-overflow": "drop-head"}, "x-overflow = drop-head"),
    ],
)
async def test_a_queue_that_is_missing_or_may_drop_messages_is_told_with_the_command(
    tmp_path: Path, rabbitmq: RabbitMQ, arguments: dict[str, str | int] | None, words: str
) -> None:
    site = at_rabbitmq(tmp_path, rabbitmq, "amqp")
    if arguments is not None:
        rabbitmq.operator.declare(site.user, arguments)
    faults = await site.faults()
    assert set(faults) == {"queue"}
    assert words in faults["queue"].measured
    assert "`fedbus-coordinator broker rabbitmq` makes it" in faults["queue"].remedy
    if arguments is not None:
        assert f"rabbitmqctl delete_queue {site.user}" in faults["queue"].remedy
        assert "x-overflow = reject-publish" in faults["queue"].remedy


async def test_amqp_that_other_machines_reach_is_told_with_its_line(
    tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    site, (port,) = managed(tmp_path, rabbitmq), free_ports(1)
    rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    listener = f'{{"0.0.0.0", {port}}}'
    rabbitmq.ctl("eval", f"rabbit_networking:start_tcp_listener({listener}, 1).")
    try:
        found = (await site.findings())["ports"]
    finally:
        rabbitmq.ctl("eval", f"rabbit_networking:stop_tcp_listener({listener}).")
    assert (found.level, f"port {port} of 0.0.0.0" in found.measured) == (Level.WARNING, True)
    assert f"`listeners.tcp.default = 127.0.0.1:{port}`" in found.remedy


async def test_another_reader_of_the_coordinators_queue_is_told(tmp_path: Path, rabbitmq: RabbitMQ) -> None:
    site = at_rabbitmq(tmp_path, rabbitmq, "amqp")
    rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    async with site.serving():
        faults = await site.faults()
    assert set(faults) == {"readers"}
    assert "rabbitmqctl list_consumers" in faults["readers"].remedy


async def test_users_without_topic_permissions_are_told(tmp_path: Path, rabbitmq: RabbitMQ) -> None:
    site = at_rabbitmq(tmp_path, rabbitmq, "amqp")
    rabbitmq.operator.admit(site.user, "secret")
    rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    faults = await site.faults()
    assert set(faults) == {"access rules"}
    assert "`fedbus-coordinator broker rabbitmq`" in faults["access rules"].remedy


@pytest.mark.parametrize("knows_management", [True, False])
async def test_a_memory_alarm_is_told_with_the_line_that_sets_the_limit(
    tmp_path: Path, rabbitmq: RabbitMQ, knows_management: bool
) -> None:
    site = managed(tmp_path, rabbitmq) if knows_management else at_rabbitmq(tmp_path, rabbitmq, "amqp")
    rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    with memory_alarm(rabbitmq):
        faults = await site.faults()
    assert set(faults) == ({"alarms", "publishing"} if knows_management else {"publishing"})
    for found in faults.values():
        assert "memory" in found.measured
        assert "`vm_memory_high_watermark.relative = 0.6`" in found.remedy


DOOR = {"mqtt anonymous login", "mqtt login", "mqtt queue length", "mqtt queue bytes", "mqtt delay"}


def with_mqtt_door(site: Site, port: int) -> Site:
    """Devices speak MQTT, the coordinator AMQP."""
    config = msgspec.structs.replace(site.config, device_urls=[f"mqtt://127.0.0.1:{port}"])
    return replace(site, config=config)


async def test_the_devices_door_is_tried_out_though_the_coordinator_takes_another(
    tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    site = with_mqtt_door(managed(tmp_path, rabbitmq), rabbitmq.mqtt)
    rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    found = await site.findings()
    assert {found[name].level for name in DOOR} == {Level.OK}
    with policy(rabbitmq, "short one", {"max-length": 100}):
        faults = await site.faults()
    assert set(faults) == {"policies", "mqtt queue length"}
    assert "`rabbitmqctl clear_policy -p / 'short one'`" in faults["policies"].remedy
    assert "all acknowledged: 100 kept" in faults["mqtt queue length"].measured
    assert "`max-length`" in faults["mqtt queue length"].remedy
    with anybody_comes_in(rabbitmq):
        faults = await site.faults()
    assert set(faults) == {"mqtt anonymous login"}
    assert "`mqtt.allow_anonymous = false`" in faults["mqtt anonymous login"].remedy


async def test_a_devices_door_that_cannot_be_tried_out_is_said(tmp_path: Path, rabbitmq: RabbitMQ) -> None:
    site = at_rabbitmq(tmp_path, rabbitmq, "amqp")
    rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    found = await with_mqtt_door(site, free_ports(1)[0]).findings()
    assert found["mqtt broker"].level is Level.WARNING
    assert "`device_urls`" in found["mqtt broker"].remedy
    rabbitmq.ctl("set_permissions", "-p", "/", site.user, f"^{site.user}/", ".*", ".*")
    found = await with_mqtt_door(site, rabbitmq.mqtt).findings()
    assert found["mqtt login"].level is Level.UNKNOWN
    assert "`fedbus-coordinator broker rabbitmq`" in found["mqtt login"].remedy
    found = await site.findings()
    assert found["queue length"].level is Level.UNKNOWN


@pytest.mark.parametrize(
    ("definition", "kind", "faults"),
    [
        ({"max-length": 100}, "policy", {"policies", "queue length"}),
        ({"max-length-bytes": 1_000_000}, "policy", {"policies", "queue bytes"}),
        ({"max-length": 100}, "operator_policy", {"policies", "queue length"}),
    ],
)
async def test_a_rabbitmq_whose_policy_drops_messages_is_told_with_the_command(
    tmp_path: Path, rabbitmq: RabbitMQ, definition: dict[str, int], kind: str, faults: set[str]
) -> None:
    site = managed(tmp_path, rabbitmq, "mqtt")
    with policy(rabbitmq, "theirs", definition, kind):
        found = await site.faults()
    assert faults == set(found)
    assert f"`rabbitmqctl clear_{kind} -p / theirs`" in found["policies"].remedy
    for name in faults - {"policies"}:
        assert f"take `{next(iter(definition))}` out of the policy" in found[name].remedy


async def test_a_rabbitmq_that_takes_no_large_messages_is_told_with_the_line(
    tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    site = managed(tmp_path, rabbitmq)
    rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    with setting(rabbitmq, "rabbit", "max_message_size", "1000000", "134217728"):
        faults = await site.faults()
    assert set(faults) == {"message size"}
    assert "`max_message_size = 134217728` in rabbitmq.conf" in faults["message size"].remedy


@contextmanager
def policy(node: RabbitMQ, name: str, definition: dict[str, int], kind: str = "policy") -> Iterator[None]:
    node.ctl(f"set_{kind}", name, "^(coordinator@|mqtt-subscription-)", json.dumps(definition))
    try:
        yield
    finally:
        node.ctl(f"clear_{kind}", name)


@contextmanager
def setting(node: RabbitMQ, application: str, name: str, value: str, before: str) -> Iterator[None]:
    def put(value: str) -> None:
        node.ctl("eval", f"application:set_env({application}, {name}, {value}).")

    put(value)
    try:
        yield
    finally:
        put(before)


@contextmanager
def anybody_comes_in(node: RabbitMQ) -> Iterator[None]:
    with setting(node, "rabbitmq_mqtt", "allow_anonymous", "true", "false"):
        yield


@contextmanager
def memory_alarm(node: RabbitMQ) -> Iterator[None]:
    def alarmed() -> bool:
        (found,) = node.operator.call("GET", "nodes")
        return bool(found.get("mem_alarm"))

    node.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        until(alarmed, "the alarm stands")
        yield
    finally:
        node.ctl("set_vm_memory_high_watermark", "absolute", "4GB")
        until(lambda: not alarmed(), "the alarm is over")


async def test_a_clock_a_day_ahead_of_the_brokers_is_told(tmp_path: Path, rabbitmq: RabbitMQ) -> None:
    site = managed(tmp_path, rabbitmq)
    rabbitmq.operator.declare(site.user, QUEUE_ARGUMENTS)
    found = await site.findings(replace(site.ports, clock=WrongClock(DAY_S)))
    assert found["clock"].level is Level.OK, "nothing here can tell"
    assert found["clock compared"].level is Level.FAULT
    assert "24 h ahead of RabbitMQ's machine" in found["clock compared"].measured
    assert "timedatectl" in found["clock compared"].remedy


async def test_a_rabbitmq_that_our_own_command_set_up_has_no_fault(
    tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    home, password = tmp_path / "home", tmp_path / "password"
    password.write_text("guest")
    management = ["--management", f"http://guest@127.0.0.1:{rabbitmq.management}"]
    management += ["--management-password-file", str(password), "--store-credentials"]
    doors = ["--broker", f"amqp://127.0.0.1:{rabbitmq.amqp}"]
    doors += ["--device-url", f"mqtt://127.0.0.1:{rabbitmq.mqtt}"]
    assert main(["init", "--dir", str(home), *doors]) == 0
    assert main(["broker", "rabbitmq", "--dir", str(home), *management]) == 0
    found = await Site.found(home).findings()
    assert [finding for finding in found.values() if finding.level is Level.FAULT] == []
    assert {found[name].level for name in DOOR} == {Level.OK}
    assert "x-queue-type = quorum, x-overflow = reject-publish" in found["queue"].measured
    assert "tells the sender" in found["access rules"].measured
