"""What operators and strangers do wrong at a broker: told in one line, or counted, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from coordinator.cli.state import open_journal
from coordinator.config import PASSWORD
from coordinator.entries import Sent, decode_entry
from schemas import topics
from schemas.ids import DeviceId, broker_user
from tests.brokers import RabbitMQ, free_ports, until
from tests.live.installation import Installation, SystemMosquitto
from tests.live.mqtt_client import Client

pytestmark = [pytest.mark.live, pytest.mark.slow]

PRESS = DeviceId("press-07")
GARBAGE = [b"x", b"FBE1" + bytes(200), b"FBC1" + bytes(40), b"FBJ1" + bytes(300), bytes(1 << 20)]
SEEN_S = 20.0


@dataclass
class Place:
    """A federation at a broker whose administrator, on ``admin_port``, may do everything there."""

    site: Installation
    admin_port: int

    def admin(self) -> Client:
        return Client(self.admin_port, "guest", "guest", client_id="administrator")


@pytest.fixture(params=["mosquitto", "rabbitmq, mqtt", "rabbitmq, amqp"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param != "mosquitto":
        node: RabbitMQ = request.getfixturevalue("rabbitmq")
        mqtt, amqp = f"mqtt://127.0.0.1:{node.mqtt}", f"amqp://127.0.0.1:{node.amqp}"
        own = amqp if request.param.endswith("amqp") else mqtt
        site = Installation(tmp_path / "fed", own, "--device-url", mqtt)
        (tmp_path / "password").write_text("guest\n")
        url = f"http://guest@127.0.0.1:{node.management}"
        options = "--management", url, "--management-password-file", str(tmp_path / "password")
        site.command("broker", "rabbitmq", *options, "--store-credentials")
        yield Place(site, node.mqtt)
        return
    ours, admins = free_ports(2)
    first = f"per_listener_settings true\nlistener {admins} 127.0.0.1\nallow_anonymous true"
    broker = SystemMosquitto(tmp_path / "system", ours, first)
    site = Installation(tmp_path / "fed", f"mqtt://127.0.0.1:{ours}")
    site.command("broker", "mosquitto", "--pid-file", str(broker.pid_file))
    broker.include(site.directory / "broker" / "mosquitto.conf")
    with broker:
        yield Place(site, admins)


def entries(site: Installation) -> list[object]:
    """All that is in the log."""
    journal = open_journal(site.directory)
    try:
        return [decode_entry(logged.data) for logged in journal.entries()]
    finally:
        journal.close()


def test_garbage_and_replays_of_the_brokers_owner_are_counted_and_change_nothing(place: Place) -> None:
    site = place.site
    federation = site.identity.federation
    up, down = topics.up(federation, PRESS), topics.down(federation, PRESS)
    with place.admin() as admin, site:
        admin.subscribe(up)
        text, _, _ = site.invite(PRESS)
        done = site.enroll(PRESS, text)
        assert done.returncode == 0, done.stderr
        until(lambda: any(p.startswith(b"FBE1") for _, p in admin.received), "the device's proof", SEEN_S)
        recorded = [payload for topic, payload in admin.received if topic == up]
        until(lambda: any(isinstance(entry, Sent) for entry in entries(site)), "the last is written", SEEN_S)
        before = entries(site)

        for payload in [*GARBAGE, *recorded]:
            for topic in (up, up.replace(PRESS, "nobody"), down):
                admin.publish(topic, payload)

        counts: dict[str, int] = {}

        def counted() -> bool:
            counts.update(site.command("dead-letters")["counts"])
            proofs = sum(payload.startswith(b"FBE1") for payload in recorded)
            # All garbage twice (no device's topic can hold it), and each proof once more from either topic.
            return sum(counts.values()) >= 2 * len(GARBAGE) + 2 * proofs

        until(counted, "all of it was looked at", SEEN_S)
        assert counts.get("replayed", 0) + counts.get("stale", 0) > 0
        assert entries(site) == before


def test_a_coordinator_with_a_wrong_password_says_whom_the_broker_refuses(place: Place) -> None:
    (place.site.directory / PASSWORD).write_text("wrong\n")
    done = place.site.run("serve")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fedbus-coordinator: ")
    assert place.site.login[0] in last
    assert "Traceback" not in done.stderr


def test_a_device_whose_rules_are_missing_at_mosquitto_is_told_that_nobody_answers(tmp_path: Path) -> None:
    """Mosquitto says nothing about what it denies, so the coordinator seems to be silent."""
    (port,) = free_ports(1)
    broker = SystemMosquitto(tmp_path / "system", port)
    site = Installation(tmp_path / "fed", f"mqtt://127.0.0.1:{port}")
    site.command("broker", "mosquitto", "--pid-file", str(broker.pid_file))
    broker.include(site.directory / "broker" / "mosquitto.conf")
    with broker, site:
        text, token, _ = site.invite(PRESS)
        user = broker_user(token.federation, PRESS)
        rules = site.directory / "broker" / "mosquitto.acl"
        rules.write_text(rules.read_text().partition(f"user {user}\n")[0])
        broker.reload()
        with Client(port, user, token.password) as device:

            def denied() -> bool:
                device.publish(topics.up(token.federation, PRESS), b"x")
                return f"Denied PUBLISH from {user}" in broker.log.read_text()

            until(denied, "the rules are gone", SEEN_S)
        done = site.enroll(PRESS, text, "--wait-s", "4")
    assert done.returncode == 1
    assert f"broker mqtt://127.0.0.1:{port}): it can be reached, but no coordinator answers" in done.stderr


def test_a_device_whose_rules_are_missing_at_rabbitmq_is_told_that_it_is_refused(
    tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    site = Installation(tmp_path / "fed", f"mqtt://127.0.0.1:{rabbitmq.mqtt}")
    (tmp_path / "password").write_text("guest\n")
    url = f"http://guest@127.0.0.1:{rabbitmq.management}"
    options = "--management", url, "--management-password-file", str(tmp_path / "password")
    site.command("broker", "rabbitmq", *options, "--store-credentials")
    with site:
        text, token, _ = site.invite(PRESS)
        name = quote(broker_user(token.federation, PRESS), safe="")
        none = {"exchange": "amq.topic", "write": "^$", "read": "^$"}
        rabbitmq.operator.call("PUT", f"topic-permissions/%2F/{name}", none)
        done = site.enroll(PRESS, text, "--wait-s", "6")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"check the access rules for user '{broker_user(token.federation, PRESS)}'" in done.stderr


def test_an_address_that_leads_nowhere_gives_way_to_the_next_of_the_token(tmp_path: Path) -> None:
    port, nowhere = free_ports(2)
    broker = SystemMosquitto(tmp_path / "system", port)
    urls = [f"mqtt://127.0.0.1:{where}" for where in (nowhere, port)]
    site = Installation(tmp_path / "fed", urls[1], "--device-url", urls[0], "--device-url", urls[1])
    site.command("broker", "mosquitto", "--listen", str(port), "--pid-file", str(broker.pid_file))
    broker.include(site.directory / "broker" / "mosquitto.conf")
    with broker, site:
        text, token, _ = site.invite(PRESS)
        assert token.urls == urls
        done = site.enroll(PRESS, text)
        assert done.returncode == 0, done.stderr
        assert f"broker: {urls[1]}" in done.stdout
    done = site.enroll("press-08", text, "--broker", urls[0], "--wait-s", "1")
    assert done.returncode == 1
    assert (
        f"no answer within 1 s (broker {urls[0]}): broker 127.0.0.1:{nowhere}: cannot connect" in done.stderr
    )
