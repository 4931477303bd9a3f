"""``broker rabbitmq`` against the real one."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from broker.amqp import QUEUE_ARGUMENTS
from broker.system import system_ports
from coordinator.broker_admin.access import access_for
from coordinator.broker_admin.roster import AccessError
from coordinator.broker_admin.site import PACKET_BYTES_MAX
from coordinator.config import load_config
from schemas import topics
from schemas.ids import DeviceId, broker_user
from schemas.limits import MESSAGE_BYTES_MAX
from tests.brokers import RabbitMQ, until
from tests.live.installation import Installation
from tests.live.mqtt_client import Client

pytestmark = [pytest.mark.live, pytest.mark.slow]

MQTT = "mqtt://127.0.0.1:{mqtt}"
AMQP = "amqp://127.0.0.1:{amqp}"
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"
"""A listener of the first alone does not answer at the second, as it would not from another machine."""


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "admin.password"
    file.write_text("guest\n")
    return file


def installed(
    base: Path, node: RabbitMQ, coordinator: str, devices: str, *options: str, name: str = "fed"
) -> Installation:
    """A federation whose broker was set up."""
    urls = [url.format(mqtt=node.mqtt, amqp=node.amqp) for url in (coordinator, devices)]
    site = Installation(base / name, urls[0], "--device-url", urls[1])
    site.command("broker", "rabbitmq", *management(base, node), *options)
    return site


def management(base: Path, node: RabbitMQ) -> tuple[str, ...]:
    file = base / "admin.password"
    return (
        "--management",
        f"http://guest@127.0.0.1:{node.management}",
        "--management-password-file",
        str(file),
    )


def users(node: RabbitMQ, site: Installation) -> list[str]:
    suffix = broker_user(site.identity.federation, "")
    names = [user["name"] for user in node.operator.call("GET", "users")]
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


def queues(node: RabbitMQ, site: Installation) -> dict[str, Any]:
    suffix = broker_user(site.identity.federation, "")
    return {q["name"]: q for q in node.operator.call("GET", "queues/%2F") if suffix in q["name"]}


@pytest.mark.parametrize(("coordinator", "devices"), [(AMQP, MQTT), (MQTT, MQTT), (AMQP, AMQP)])
def test_a_device_enrols_right_after_its_invitation_and_is_gone_after_its_revocation(
    coordinator: str, devices: str, tmp_path: Path, rabbitmq: RabbitMQ, password_file: Path
) -> None:
    site = installed(tmp_path, rabbitmq, coordinator, devices, "--store-credentials")
    with site:
        text, token, notes = site.invite("press-07")
        assert notes == []
        done = site.enroll("press-07", text)
        assert done.returncode == 0, done.stderr
        user = broker_user(token.federation, "press-07")
        assert users(rabbitmq, site) == ["coordinator", "press-07"]
        if devices == MQTT:
            with Client(rabbitmq.mqtt, user, token.password) as device:
                assert device.refused == ""
                site.command("devices", "revoke", "press-07")
                assert device.lost.wait(20), "an open connection ends, too"
            with Client(rabbitmq.mqtt, user, token.password) as device:
                assert device.refused
        else:
            site.command("devices", "revoke", "press-07")
        left = {name for name in queues(rabbitmq, site) if "press-07" in name}
    assert left == set()
    assert users(rabbitmq, site) == ["coordinator"]


def test_queues_are_quorum_queues_that_take_what_devices_send_before_the_coordinator_comes(
    tmp_path: Path, rabbitmq: RabbitMQ, password_file: Path
) -> None:
    site = installed(tmp_path, rabbitmq, AMQP, MQTT)
    user, _ = site.login
    found = queues(rabbitmq, site)
    assert list(found) == [user]
    assert found[user]["arguments"] == QUEUE_ARGUMENTS
    bound = rabbitmq.operator.call("GET", f"queues/%2F/{quote(user, safe='')}/bindings")
    key = f"fedbus.{site.identity.federation.hex()}.up.*"
    assert key in [binding["routing_key"] for binding in bound if binding["source"] == "amq.topic"]


def test_without_stored_credentials_the_administrator_is_told_what_to_run(
    tmp_path: Path, rabbitmq: RabbitMQ, password_file: Path
) -> None:
    site = installed(tmp_path, rabbitmq, AMQP, MQTT)
    assert not (site.directory / "keys" / "management.password").exists()
    with site:
        text, token, notes = site.invite("press-07")
        (note,) = notes
        assert "fedbus-coordinator broker rabbitmq --management http://guest@127.0.0.1" in note
        assert users(rabbitmq, site) == ["coordinator"]
        made = site.command("broker", "rabbitmq", *management(tmp_path, rabbitmq))
        assert made["users"] == [broker_user(token.federation, name) for name in ("coordinator", "press-07")]
        done = site.enroll("press-07", text)
        assert done.returncode == 0, done.stderr
        site.command("devices", "revoke", "press-07")
        made = site.command("broker", "rabbitmq", *management(tmp_path, rabbitmq))
        assert made["removed"] == [broker_user(token.federation, "press-07")]


def test_a_broker_that_lost_everything_is_set_up_from_the_roster(
    tmp_path: Path, rabbitmq: RabbitMQ, password_file: Path
) -> None:
    site = installed(tmp_path, rabbitmq, AMQP, MQTT, "--store-credentials")
    with site:
        text, token, _ = site.invite("press-07")
    for name in ("coordinator", "press-07"):
        rabbitmq.operator.call("DELETE", f"users/{quote(broker_user(token.federation, name), safe='')}")
    for queue in queues(rabbitmq, site):
        rabbitmq.operator.call("DELETE", f"queues/%2F/{quote(queue, safe='')}")
    site.command("broker", "rabbitmq")
    with site:
        done = site.enroll("press-07", text)
        assert done.returncode == 0, done.stderr


async def test_another_virtual_host_is_made_and_used_and_missed_when_it_is_gone(
    tmp_path: Path, rabbitmq: RabbitMQ, password_file: Path
) -> None:
    url = f"amqp://127.0.0.1:{rabbitmq.amqp}/learning"
    site = Installation(tmp_path / "fed", url)
    made = site.command("broker", "rabbitmq", *management(tmp_path, rabbitmq), "--store-credentials")
    assert made["vhost"] == "learning"
    assert "mqtt.vhost = learning\n" in (site.directory / "broker" / "rabbitmq.conf").read_text()
    with site:
        text, _, _ = site.invite("press-07")
        done = site.enroll("press-07", text)
        assert done.returncode == 0, done.stderr
    rabbitmq.operator.call("DELETE", "vhosts/learning")
    ports, home = system_ports(), site.directory
    access = access_for(ports, home, load_config(ports.files, home, {}), site.identity.federation)
    with pytest.raises(AccessError, match="no virtual host learning; `fedbus-coordinator broker rabbitmq`"):
        await access.admit(DeviceId("press-08"), "secret")


def test_each_fault_of_the_management_api_is_one_line_with_its_remedy(
    tmp_path: Path, rabbitmq: RabbitMQ, password_file: Path
) -> None:
    site = Installation(tmp_path / "fed", AMQP.format(amqp=rabbitmq.amqp))
    host = "http://127.0.0.1"
    command = "broker", "rabbitmq", "--management-password-file", str(password_file), "--management"
    assert "rabbitmq-plugins enable rabbitmq_management" in site.refused(*command, f"{host}:1")
    assert "rabbitmq-plugins enable rabbitmq_management" in site.refused(*command, f"{host}:{rabbitmq.amqp}")
    rabbitmq.operator.call("PUT", "users/reader", {"password": "guest", "tags": "management"})
    refused = site.refused(*command, f"http://reader@127.0.0.1:{rabbitmq.management}")
    assert "rabbitmqctl set_user_tags reader administrator" in refused
    password_file.write_text("wrong\n")
    refused = site.refused(*command, f"{host}:{rabbitmq.management}")
    assert "user guest refused; check its name and password" in refused
    assert "http(s)://user@host:port" in site.refused(*command, "ftp://127.0.0.1")
    assert "--management http://user@host:15672" in site.refused("broker", "rabbitmq")
    assert users(rabbitmq, site) == []


def test_a_queue_with_other_arguments_is_named(
    tmp_path: Path, rabbitmq: RabbitMQ, password_file: Path
) -> None:
    site = Installation(tmp_path / "fed", AMQP.format(amqp=rabbitmq.amqp))
    queue = site.login[0]
    rabbitmq.operator.declare(queue, {})
    refused = site.refused("broker", "rabbitmq", *management(tmp_path, rabbitmq))
    assert f"rabbitmqctl delete_queue {queue}" in refused


def test_set_up_again_nothing_changes(tmp_path: Path, rabbitmq: RabbitMQ, password_file: Path) -> None:
    site = installed(tmp_path, rabbitmq, AMQP, MQTT, "--store-credentials")
    before = (site.directory / "coordinator.toml").read_text(), rabbitmq.operator.call("GET", "definitions")
    site.command("broker", "rabbitmq")
    after = (site.directory / "coordinator.toml").read_text(), rabbitmq.operator.call("GET", "definitions")
    assert json.dumps(after, sort_keys=True) == json.dumps(before, sort_keys=True)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RabbitMQ, Installation, Path]]:
    """A node with the configuration that was written for a coordinator beside it and devices with TLS."""
    base = tmp_path_factory.mktemp("tls")
    (base / "admin.password").write_text("guest\n")
    node, home = RabbitMQ(base / "node"), base / "node"
    urls = f"amqps://localhost:{node.amqps}", f"mqtts://127.0.0.1:{node.mqtts}"
    with node:
        site = Installation(base / "fed", urls[0], "--device-url", urls[1])
        tls = base / "tls"
        made = site.command("broker", "rabbitmq", "--tls", "--out", str(tls), *management(base, node))
        (note,) = [note for note in made["notes"] if "closes" in note]
        assert "listeners.tcp = none" in note
        node.stop()
        (home / "conf.d").mkdir()
        shutil.copy(made["configuration"], home / "conf.d" / "50-fedbus.conf")
        node.start()
        written = Path(made["configuration"]).read_bytes()
        again = site.command("broker", "rabbitmq", *management(base, node), "--store-credentials")
        unchanged = [made["certificates"][0] | {"renewed": False}]
        assert again["certificates"] == unchanged, "it is renewed where it is"
        assert again["configuration"] == made["configuration"]
        assert Path(again["configuration"]).read_bytes() == written
        yield node, site, tls


def test_the_token_alone_suffices_for_a_broker_with_a_private_authority(
    secured: tuple[RabbitMQ, Installation, Path],
) -> None:
    _, site, tls = secured
    with site:
        text, token, _ = site.invite("press-07")
        assert token.ca == (tls / "ca.crt").read_text()
        done = site.enroll("press-07", text)
        assert done.returncode == 0, done.stderr


def test_as_set_up_other_machines_reach_mqtt_with_tls_and_no_amqp_at_all(
    secured: tuple[RabbitMQ, Installation, Path],
) -> None:
    node, _, _ = secured
    ports = node.mqtts, node.amqps, node.amqp, node.mqtt
    assert [reached(HERE, port) for port in ports] == [True, True, False, False]
    assert [reached(ELSEWHERE, port) for port in ports] == [True, False, False, False]


def test_a_message_larger_than_any_of_ours_is_kept_from_the_coordinator_and_the_operator_reads_who_sent_it(
    secured: tuple[RabbitMQ, Installation, Path],
) -> None:
    node, site, tls = secured
    with site:
        _, token, _ = site.invite("press-08")
    mole, up = broker_user(token.federation, "press-08"), topics.up(token.federation, DeviceId("press-08"))
    with Client(node.mqtts, mole, token.password, ca=tls / "ca.crt") as device:
        device.publish(up, bytes(MESSAGE_BYTES_MAX))
        device.send(up, bytes(PACKET_BYTES_MAX + 1))
        until(lambda: f"user: '{mole}'" in node.log.read_text(), "the log names who sent it", 20)
    assert f"larger than configured max size {PACKET_BYTES_MAX}" in node.log.read_text()
    until(lambda: backlog(node, site) == MESSAGE_BYTES_MAX, "the one that is allowed waits, and no other", 20)


def backlog(node: RabbitMQ, site: Installation) -> int:
    """What waits for the coordinator, in bytes."""
    return int(queues(node, site)[site.login[0]].get("message_bytes", 0))


def reached(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True
