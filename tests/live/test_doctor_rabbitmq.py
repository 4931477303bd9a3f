"""The coordinator's doctor at RabbitMQ: deliberately wrong, each fault told with the change, and right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from broker.amqp import QUEUE_ARGUMENTS
from broker.checkup import Level
from coordinator.cli.main import main
from coordinator.config import MANAGEMENT_PASSWORD
from tests.brokers import RabbitMQ, until
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
    assert main(["init", "--dir", str(home), "--broker", f"amqp://127.0.0.1:{rabbitmq.amqp}"]) == 0
    assert main(["broker", "rabbitmq", "--dir", str(home), *management]) == 0
    found = await Site.found(home).findings()
    assert [finding for finding in found.values() if finding.level is Level.FAULT] == []
    assert "x-queue-type = quorum, x-overflow = reject-publish" in found["queue"].measured
    assert "tells the sender" in found["access rules"].measured
