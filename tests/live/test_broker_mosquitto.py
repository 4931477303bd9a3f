"""``broker mosquitto`` against the real one, included as its operator is told to."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import pytest

from schemas.enrolment import Token
from schemas.ids import broker_user
from tests.brokers import free_ports, require, until
from tests.live.installation import Installation, SystemMosquitto
from tests.live.mqtt_client import Client
from tests.live.operators import ROOT, PathUnit

pytestmark = [pytest.mark.live]


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def installed(base: Path, port: int, *options: str, name: str = "fed", scheme: str = "mqtt") -> Installation:
    """A federation whose broker was set up, and may be started now."""
    site = Installation(base / name, f"{scheme}://127.0.0.1:{port}")
    site.command("broker", "mosquitto", "--pid-file", str(base / "system" / "mosquitto.pid"), *options)
    return site


def started(base: Path, port: int, *sites: Installation, first: str = "") -> SystemMosquitto:
    broker = SystemMosquitto(base / "system", port, first)
    for site in sites:
        broker.include(site.directory / "broker" / "mosquitto.conf")
    return broker


def test_a_device_enrols_right_after_its_invitation_and_is_out_after_its_revocation(
    tmp_path: Path, port: int
) -> None:
    site = installed(tmp_path, port)
    with started(tmp_path, port, site), site:
        text, token, notes = site.invite("press-07")
        assert notes == []
        done = site.enroll("press-07", text)
        assert done.returncode == 0, done.stderr
        assert f"broker: mqtt://127.0.0.1:{port}" in done.stdout
        user = broker_user(token.federation, "press-07")
        with Client(port, user, token.password) as device:
            assert device.refused == ""
            assert not device.lost.is_set()
            site.command("devices", "revoke", "press-07")
            assert device.lost.wait(20), "an open connection ends, too"
        with Client(port, user, token.password) as device:
            assert "uthori" in device.refused


def test_the_token_alone_suffices_for_a_broker_with_a_private_authority(tmp_path: Path, port: int) -> None:
    site = installed(tmp_path, port, "--tls", "--host", "broker.example", scheme="mqtts")
    ca = site.directory / "broker" / "ca.crt"
    with started(tmp_path, port, site), site:
        text, token, notes = site.invite("press-07")
        assert (token.version, token.ca, notes) == (2, ca.read_text(), [])
        done = site.enroll("press-07", text)
        assert done.returncode == 0, done.stderr
        user = broker_user(token.federation, "press-07")
        with Client(port, user, token.password, ca=ca) as device:
            assert device.refused == ""
        with Client(port, user, token.password) as device:
            assert device.refused, "without TLS nobody gets in"


def test_with_client_certificates_each_session_is_its_certificates(tmp_path: Path, port: int) -> None:
    site = installed(tmp_path, port, "--tls", "--client-certificates", scheme="mqtts")
    folder = site.directory / "broker"
    with started(tmp_path, port, site), site:
        text, token, _ = site.invite("press-07")
        site.invite("press-08")
        done = site.enroll("press-07", text, "--wait-s", "5")
        assert done.returncode == 1, "a certificate is wanted"
        assert "certificate" in done.stderr
        made = site.command("broker", "certificate", "press-07")["certificates"][0]
        done = site.enroll("press-07", text, "--certificate", made["file"], "--key", made["key"])
        assert done.returncode == 0, done.stderr

        own, other = (broker_user(token.federation, name) for name in ("press-07", "press-08"))
        certificate = folder / "certificates" / "press-07.crt"
        down = f"fedbus/{token.federation.hex()}/down"
        with Client(
            port, other, "x", client_id=other, ca=folder / "ca.crt", certificate=certificate
        ) as device:
            device.subscribe(f"{down}/press-08")
            device.subscribe(f"{down}/press-07")
            coordinator = folder / "coordinator-probe.crt"
            with Client(port, own, "x", ca=folder / "ca.crt", certificate=coordinator) as probe:
                probe.publish(f"{down}/press-07", b"denied: this user is a probe")
            assert not device.lost.is_set()
    log = (tmp_path / "system" / "mosquitto.log").read_text()
    assert f"as {own} (p2, c1, k60, u'{own}')" in log, "user and client id are the certificate's"
    assert f"Denied PUBLISH from {site.login[0]}/probe" in log


def test_with_a_certificate_a_revoked_device_still_connects_and_is_neither_heard_nor_told_anything(
    tmp_path: Path, port: int
) -> None:
    """Mosquitto does not compare certificates with its users; the rules are what shuts the device out."""
    site = installed(tmp_path, port, "--tls", "--client-certificates", scheme="mqtts")
    folder, log = site.directory / "broker", tmp_path / "system" / "mosquitto.log"
    with started(tmp_path, port, site):
        with site:
            text, token, _ = site.invite("press-07")
            made = site.command("broker", "certificate", "press-07")["certificates"][0]
            done = site.enroll("press-07", text, "--certificate", made["file"], "--key", made["key"])
            assert done.returncode == 0, done.stderr
            own, home = broker_user(token.federation, "press-07"), f"fedbus/{token.federation.hex()}"

            def connected(user: str, certificate: str) -> Client:
                return Client(port, user, "x", ca=folder / "ca.crt", certificate=Path(certificate))

            def denied() -> bool:
                with connected(own, made["file"]) as device:
                    assert device.refused == ""
                    device.publish(f"{home}/up/press-07", b"late")
                return f"Denied PUBLISH from {own}" in log.read_text()

            site.command("devices", "revoke", "press-07")
            until(denied, "the rules hold", 20)
        coordinator = connected(site.login[0], str(folder / "coordinator.crt"))
        with connected(own, made["file"]) as device, coordinator:
            device.subscribe(f"{home}/down/press-07")
            coordinator.publish(f"{home}/down/press-07", b"for nobody")
            device.subscribe("anything")  # its answer comes after what came before
            assert device.received == []


def test_set_up_again_nothing_changes_that_is_right_and_what_is_asked_for_anew_is_added(
    tmp_path: Path, port: int
) -> None:
    site = installed(tmp_path, port, "--tls", scheme="mqtts")
    folder = site.directory / "broker"
    with started(tmp_path, port, site), site:
        site.invite("press-07")

    def contents() -> dict[str, bytes]:
        files = [*folder.iterdir(), site.directory / "coordinator.toml"]
        return {path.name: path.read_bytes() for path in files if path.name != "roster.lock"}

    before = contents()
    again = site.command("broker", "mosquitto", "--tls")
    assert contents() == before
    assert [leaf["renewed"] for leaf in again["certificates"]] == [False]
    named = site.command("broker", "mosquitto", "--tls", "--host", "10.0.0.7")
    assert [leaf["renewed"] for leaf in named["certificates"]] == [True]
    changed = {name for name, data in contents().items() if data != before[name]}
    assert changed == {"server.crt", "server.key", "mosquitto.json"}


def test_two_federations_on_one_mosquitto_do_not_meet(tmp_path: Path) -> None:
    """A listener for each, and devices of the same names in both."""
    ports = free_ports(2)
    sites = [installed(tmp_path, port, name=f"fed-{index}") for index, port in enumerate(ports)]
    broker = started(tmp_path, ports[0], *sites, first="per_listener_settings true")
    with broker, sites[0], sites[1]:
        invited = [site.invite("press-07") for site in sites]
        for site, (text, _, _) in zip(sites, invited, strict=True):
            done = site.enroll("press-07", text)
            assert done.returncode == 0, done.stderr
        first, second = (token for _, token, _ in invited)
        user = broker_user(first.federation, "press-07")
        with Client(ports[1], user, first.password) as stranger:
            assert "uthori" in stranger.refused, "each listener has users of its own"
        with Client(ports[0], user, first.password) as device:
            device.publish(f"fedbus/{second.federation.hex()}/up/press-07", b"garbage")
        for site in sites:
            site.command("devices", "revoke", "press-07")
            assert site.command("dead-letters")["counts"] == {}


def test_without_a_process_to_tell_the_operator_is_told_to_reload(tmp_path: Path, port: int) -> None:
    site = Installation(tmp_path / "fed", f"mqtt://127.0.0.1:{port}")
    site.command("broker", "mosquitto")
    with started(tmp_path, port, site) as broker, site:
        done = site.run("invite", "press-07")
        assert "note: Mosquitto must read its users again: `systemctl reload mosquitto`" in done.stderr
        refused = site.enroll("press-07", done.stdout.strip(), "--wait-s", "10")
        assert refused.returncode == 1
        assert "the broker refuses the login" in refused.stderr
        broker.reload()
        done = site.enroll("press-07", done.stdout.strip())
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start Mosquitto as another user")
def test_mosquittos_own_user_reads_what_was_written_before_it_could_enter(port: int) -> None:
    require("mosquitto")
    with TemporaryDirectory() as name:
        base = Path(name)
        site = Installation(base / "fed", f"mqtts://127.0.0.1:{port}")
        done = site.command("broker", "mosquitto")
        assert any(f"cannot enter {base}" in note for note in done["notes"])
        for folder in (base, site.directory):
            folder.chmod(0o711)
        done = site.command("broker", "mosquitto")
        assert not any("cannot enter" in note for note in done["notes"])
        assert not any(leaf["renewed"] for leaf in done["certificates"])
        user, password = site.login
        broker = SystemMosquitto(base / "system", port, user="mosquitto")
        broker.include(site.directory / "broker" / "mosquitto.conf")
        with broker, Client(port, user, password, ca=site.directory / "broker" / "ca.crt") as coordinator:
            assert coordinator.refused == ""


def test_all_devices_are_let_in_that_were_invited_while_the_path_unit_was_at_work(
    tmp_path: Path, port: int
) -> None:
    """It does not look while it has Mosquitto reload: the last one would wait for the next change."""
    site = Installation(tmp_path / "fed", f"mqtt://127.0.0.1:{port}")
    site.command("broker", "mosquitto")
    folder = site.directory / "broker"
    tokens: dict[str, Token] = {}
    at_work = Event()

    def reload() -> None:
        broker.reload()
        if at_work.is_set() and "press-08" not in tokens:
            tokens["press-08"] = site.invite("press-08")[1]

    def here(text: str) -> str:
        return text.replace("/etc/mosquitto/fedbus", str(folder))

    unit = PathUnit(ROOT / "deploy/systemd/fedbus-mosquitto-reload.path", reload, here)
    with started(tmp_path, port, site) as broker, site, unit:
        at_work.set()
        tokens["press-07"] = site.invite("press-07")[1]
        until(lambda: len(tokens) == 2, "the second invitation")
        for name, token in tokens.items():
            user = broker_user(token.federation, name)
            until(partial(admitted, port, user, token.password), f"{name} may log in", 20)


def admitted(port: int, user: str, password: str) -> bool:
    with Client(port, user, password) as device:
        return not device.refused


@pytest.mark.parametrize(
    ("content", "cause"),
    [(None, "No such file or directory"), ("1\n", "names process 1, which is"), ("x", "holds no process id")],
)
def test_a_process_that_cannot_be_told_is_named_in_the_note(
    content: str | None, cause: str, tmp_path: Path, port: int
) -> None:
    site = Installation(tmp_path / "fed", f"mqtt://127.0.0.1:{port}")
    pid_file = tmp_path / "pid"
    if content is not None:
        pid_file.write_text(content)
    done = site.command("broker", "mosquitto", "--pid-file", str(pid_file))
    (note,) = [text for text in done["notes"] if "systemctl reload" in text]
    assert cause in note


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("amqp://127.0.0.1:1", (), "Mosquitto speaks MQTT"),
        ("mqtt://127.0.0.1:1", ("--tls",), "write mqtts://127.0.0.1:1 in"),
        ("mqtt://127.0.0.1:1", ("--listen", "x"), "--listen x: write HOST:PORT"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    url: str, options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    site = Installation(tmp_path / "fed", url)
    assert words in site.refused("broker", "mosquitto", *options)
    assert not (site.directory / "broker").exists()


def test_a_coordinator_that_serves_already_is_to_be_started_again(tmp_path: Path, port: int) -> None:
    """Its settings are read when it starts; what it did before is not lost."""
    broker = SystemMosquitto(tmp_path / "system", port, f"listener {port} 127.0.0.1\nallow_anonymous true")
    site = Installation(tmp_path / "fed", f"mqtt://127.0.0.1:{port}")
    with broker, site:
        text, _, notes = site.invite("press-07")
        assert any("fedbus-coordinator broker mosquitto" in note for note in notes)
        done = site.command("broker", "mosquitto", "--pid-file", str(broker.pid_file))
        assert "the coordinator reads its settings when it starts: start it again" in done["notes"]
        again = site.command("broker", "mosquitto", "--pid-file", str(broker.pid_file))
        assert again["notes"] == [note for note in done["notes"] if "start it again" not in note]
    with started(tmp_path / "secured", port, site), site:
        done = site.enroll("press-07", text)
        assert done.returncode == 0, done.stderr
