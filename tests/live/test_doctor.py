"""The coordinator's doctor at Mosquitto: deliberately wrong, each fault told with the line to change, and
right."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from broker.bus import Connected, Credentials
from broker.checkup import Level
from broker.connect import connect
from broker.system import system_ports
from coordinator.broker_admin.certificates import CertificateAuthority
from coordinator.cli.main import main
from coordinator.doctor.mqtt import dropping
from schemas import topics
from tests.brokers import Mosquitto, free_ports, until
from tests.coordinator.test_doctor import DAY_S, WrongClock
from tests.live.fleet import COORDINATOR as PROGRAM
from tests.live.sites import Site

pytestmark = pytest.mark.live

RIGHT = Mosquitto.USERS + Mosquitto.DURABLE
NO_RULES = (
    "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {base}/passwords\n" + Mosquitto.DURABLE
)
TLS = (
    "listener {port} 127.0.0.1\ncertfile {base}/server.crt\nkeyfile {base}/server.key\nallow_anonymous true\n"
)
YEAR_S = 366 * DAY_S


@contextmanager
def at_mosquitto(tmp_path: Path, config: str) -> Iterator[Site]:
    broker = Mosquitto(tmp_path / "mosquitto", config)
    site = Site.make(tmp_path / "home", f"mqtt://127.0.0.1:{broker.port}")
    broker.admit(site.user, "secret", site.may_write, [*site.may_read, "$SYS/broker/version"])
    with broker:
        yield site


async def test_a_right_mosquitto_has_no_fault(tmp_path: Path) -> None:
    with at_mosquitto(tmp_path, RIGHT) as site:
        found = await site.findings()
    assert [finding for finding in found.values() if finding.level is Level.FAULT] == []
    assert {"login", "access rules", "message size", "queue length", "queue bytes", "delay"} <= set(found)
    assert "mosquitto version" in found["durability"].measured
    assert "acknowledges it, and ends the connection" in found["access rules"].measured


@pytest.mark.parametrize(
    ("config", "fault", "measured", "line"),
    [
        (Mosquitto.USERS, "queue length", "1000 kept", "`max_queued_messages 0`"),
        (
            Mosquitto.USERS + "max_queued_messages 0\nmax_queued_bytes 9000000\n",
            "queue bytes",
            "32 MiB",
            "`max_queued_bytes 0`",
        ),
        (RIGHT + "message_size_limit 1000000\n", "message size", "silently", "`message_size_limit 0`"),
        (RIGHT + "max_packet_size 1000000\n", "message size", "refuses", "`max_packet_size`"),
        (NO_RULES, "access rules", "speak as a device", "`acl_file FILE`"),
    ],
)
async def test_a_mosquitto_that_is_wrong_in_one_thing_is_told_with_the_line(
    tmp_path: Path, config: str, fault: str, measured: str, line: str
) -> None:
    with at_mosquitto(tmp_path, config) as site:
        faults = await site.faults()
    assert set(faults) == {fault}
    assert measured in faults[fault].measured
    assert line in faults[fault].remedy
    assert "restart Mosquitto" in faults[fault].remedy


async def test_a_mosquitto_that_lets_anybody_in_is_told_so(tmp_path: Path) -> None:
    with at_mosquitto(tmp_path, Mosquitto.OPEN + Mosquitto.DURABLE) as site:
        faults = await site.faults()
    assert set(faults) == {"access rules", "anonymous login"}
    assert "`allow_anonymous false`" in faults["anonymous login"].remedy


async def test_a_mosquitto_whose_small_messages_wait_is_told_so(tmp_path: Path) -> None:
    config = RIGHT.replace("set_tcp_nodelay true\n", "")
    with at_mosquitto(tmp_path, config) as site:
        found = (await site.findings())["delay"]
    assert found.level is Level.WARNING
    assert "`set_tcp_nodelay true`" in found.remedy


async def test_rules_that_leave_no_room_for_probes_are_told_with_the_rule(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "mosquitto", RIGHT)
    site = Site.make(tmp_path / "home", f"mqtt://127.0.0.1:{broker.port}")
    broker.admit(site.user, "secret", [topics.all_down(site.identity.federation)], ["$SYS/#"])
    with broker:
        faults = await site.faults()
    assert set(faults) == {"publishing"}
    assert f"`topic readwrite {topics.probe(site.identity.federation)}`" in faults["publishing"].remedy


async def test_a_password_that_the_broker_refuses_is_told_once(tmp_path: Path) -> None:
    with at_mosquitto(tmp_path, RIGHT) as site:
        (site.directory / "keys" / "broker.password").write_text("wrong")
        found = await site.findings()
    assert list(found)[-1] == "login", "nothing more can be measured"
    assert found["login"].level is Level.FAULT
    assert site.user in found["login"].measured
    assert "password" in found["login"].remedy


async def test_a_certificate_that_has_expired_is_told_with_its_date(tmp_path: Path) -> None:
    folder = tmp_path / "mosquitto"
    long_ago = replace(system_ports(), clock=WrongClock(-3 * YEAR_S))
    authority = CertificateAuthority(long_ago, folder)
    authority.ensure("test")
    authority.server(folder, ["127.0.0.1"])
    with Mosquitto(folder, TLS) as broker:
        site = Site.make(tmp_path / "home", f"mqtts://127.0.0.1:{broker.port}", ca=str(authority.path))
        found = await site.findings()
    assert list(found)[-1] == "certificate"
    assert found["certificate"].level is Level.FAULT
    assert "expired 273 days ago" in found["certificate"].measured
    assert "`certfile`" in found["certificate"].remedy


async def test_probes_leave_nothing_at_the_broker_and_take_nothing_from_the_coordinator(
    tmp_path: Path,
) -> None:
    with at_mosquitto(tmp_path, Mosquitto.USERS) as site:
        async with site.serving():
            await site.findings()
            away = f"{site.user}/probe-away"
            credentials = Credentials(away, site.user, "secret")
            async with connect(site.config.broker, credentials, site.may_read, ports=site.ports) as bus:
                waiting = bus.incoming()
                assert isinstance(await anext(waiting), Connected), "the session was forgotten with its queue"
                await bus.publish(topics.probe(site.identity.federation), b"the first since")
                delivery = await anext(waiting)
                assert not isinstance(delivery, Connected)
                assert delivery.payload == b"the first since"
        log = tmp_path / "mosquitto" / "mosquitto.log"
        ends = f"Received DISCONNECT from {site.user}\n"
        until(lambda: ends in log.read_text(), "the coordinator's session ends")
    assert log.read_text().count(ends) == 1, "the coordinator's own session stood"


async def test_whether_a_broker_drops_messages_is_found_out_at_each_start(tmp_path: Path) -> None:
    for name, config, line in (("dropping", Mosquitto.USERS, "max_queued_messages 0"), ("right", RIGHT, "")):
        with at_mosquitto(tmp_path / name, config) as site:
            problem = await dropping(site.directory, site.config, site.identity, site.ports)
        assert line in problem
        assert bool(problem) == bool(line)


async def test_a_mosquitto_that_names_sessions_after_users_is_told_and_the_coordinators_queue_is_kept(
    tmp_path: Path,
) -> None:
    with at_mosquitto(tmp_path, RIGHT + "use_username_as_clientid true\n") as site:
        user = Credentials(site.user, site.user, "secret")
        async with site.serving():
            problem = await dropping(site.directory, site.config, site.identity, site.ports)
            beside = await site.faults()
        async with connect(site.config.broker, user, site.may_read, ports=site.ports) as bus:
            assert isinstance(await anext(bus.incoming()), Connected)
            await bus.publish(topics.probe(site.identity.federation), b"for the coordinator")
        alone = await site.faults()
        assert await dropping(site.directory, site.config, site.identity, site.ports) == problem
        async with connect(site.config.broker, user, site.may_read, ports=site.ports) as bus:
            arrivals = bus.incoming()
            while isinstance(delivery := await anext(arrivals), Connected):
                pass
            assert delivery.payload == b"for the coordinator"
    for faults in (beside, alone):
        assert set(faults) == {"sessions"}
        assert "`use_username_as_clientid true`" in faults["sessions"].remedy
    assert "`use_username_as_clientid true`" in problem


def test_serve_warns_of_a_broker_that_drops_messages(tmp_path: Path) -> None:
    with at_mosquitto(tmp_path, Mosquitto.USERS) as site, (tmp_path / "serve.log").open("wb") as log:
        serving = subprocess.Popen([*PROGRAM, "serve", "--dir", str(site.directory)], stderr=log)
        try:
            until(lambda: "max_queued_messages 0" in (tmp_path / "serve.log").read_text(), "the warning")
        finally:
            serving.terminate()
            assert serving.wait(60) == 0
    lines = [line for line in (tmp_path / "serve.log").read_text().splitlines() if "drops" in line]
    assert len(lines) == 1
    assert '"level": "warning"' in lines[0]


async def test_a_mosquitto_that_our_own_command_set_up_has_no_fault(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    home = tmp_path / "home"
    assert main(["init", "--dir", str(home), "--broker", f"mqtts://127.0.0.1:{port}"]) == 0
    assert main(["broker", "mosquitto", "--dir", str(home), "--tls"]) == 0
    config = (home / "broker" / "mosquitto.conf").read_text()
    with Mosquitto(tmp_path / "mosquitto", f"{config}persistence_location {{base}}/\n", port=port):
        found = await Site.found(home).findings()
    assert [finding for finding in found.values() if finding.level is Level.FAULT] == []
    assert "days left" in found["certificate"].measured
    assert found["queue length"].level is Level.OK
