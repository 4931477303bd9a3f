"""``init`` and ``broker`` as far as no broker is needed, and what an invitation carries for TLS."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from broker.system import system_ports
from coordinator.cli.main import main
from coordinator.config import Config, load_config
from coordinator.setup import init
from schemas.enrolment import token_from_text
from tests.standin import federation

Capsys = pytest.CaptureFixture[str]
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def made(capsys: Capsys, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def error_of(capsys: Capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_init_keeps_the_certificates_that_it_was_given(tmp_path: Path, capsys: Capsys) -> None:
    home, ca, own, key = (tmp_path / name for name in ("fed", "ca.pem", "own.pem", "own.key"))
    for path in (ca, own, key):
        path.write_text(PEM)
    files = "--ca", str(ca), "--certificate", str(own), "--key", str(key)
    urls = "--broker", "amqps://b/learning", "--device-url", "mqtts://b"
    assert made(capsys, "init", "--dir", str(home), *urls, *files)["broker"] == "amqps://b/learning"
    config = load_config(system_ports().files, home, {})
    assert (config.ca, config.certificate, config.key) == (str(ca), str(own), str(key))
    assert config.device_urls == ["mqtts://b"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--broker", "mqtts://b", "--ca", "gone.pem"), "--ca gone.pem: No such file"),
        (
            ("--broker", "mqtt://b", "--device-url", "http://b"),
            "mqtt(s)://host:port, amqp(s)://host:port/vhost",
        ),
        (("--broker", "amqps://b"), "name its MQTT plugin: mqtt(s)://host:port"),
        (("--broker", "amqps://b", "--device-url", "amqp://b"), "device_urls: broker URL amqp://b: not for"),
        (("--broker", "amqp://"), "mqtt(s)://host:port, amqp(s)://host:port/vhost"),
    ],
)
def test_init_refuses_what_cannot_be_before_anything_is_made(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: Capsys
) -> None:
    assert words in error_of(capsys, "init", "--dir", str(tmp_path / "fed"), *options)
    assert not (tmp_path / "fed").exists()


@pytest.mark.parametrize("command", [("mosquitto",), ("rabbitmq",), ("certificate", "press-07")])
def test_an_embedded_broker_needs_no_set_up(command: tuple[str, ...], tmp_path: Path, capsys: Capsys) -> None:
    made(capsys, "init", "--dir", str(tmp_path))
    assert "has a broker of its own" in error_of(capsys, "broker", *command, "--dir", str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_the_directory_of_another_user_is_left_alone(tmp_path: Path, capsys: Capsys) -> None:
    made(capsys, "init", "--dir", str(tmp_path / "fed"), "--broker", "mqtt://b")
    os.chown(tmp_path / "fed", 54_321, -1)
    error = error_of(capsys, "broker", "mosquitto", "--dir", str(tmp_path / "fed"))
    assert "belongs to 54321: run this as 54321 (`sudo -u 54321" in error


@pytest.mark.parametrize(
    ("name", "words"),
    [("press-07", "this federation has no authority of its own"), ("coordinator", "the coordinator's own")],
)
def test_a_devices_certificate_needs_an_authority_and_a_devices_name(
    name: str, words: str, tmp_path: Path, capsys: Capsys
) -> None:
    home = str(tmp_path / "fed")
    made(capsys, "init", "--dir", home, "--broker", "mqtts://b")
    if name == "coordinator":
        made(capsys, "broker", "mosquitto", "--dir", home)
    assert words in error_of(capsys, "broker", "certificate", name, "--dir", home)


def test_people_are_told_what_to_do_next(tmp_path: Path, capsys: Capsys) -> None:
    home = tmp_path / "fed"
    made(capsys, "init", "--dir", str(home), "--broker", "mqtts://broker.example:8883")
    assert main(["broker", "mosquitto", "--dir", str(home)]) == 0
    text = capsys.readouterr().out
    for words in (
        f"ln -sf {home / 'broker' / 'mosquitto.conf'} /etc/mosquitto/conf.d/fedbus-",
        "next: systemctl restart mosquitto",
        f"next: fedbus-coordinator serve --dir {home}",
        "for broker.example: valid until 20",
    ):
        assert words in text


def test_what_was_asked_for_once_holds_until_something_else_is_asked_for(
    tmp_path: Path, capsys: Capsys
) -> None:
    home, out = tmp_path / "fed", tmp_path / "out"
    made(capsys, "init", "--dir", str(home), "--broker", "mqtts://b")
    command = "broker", "mosquitto", "--dir", str(home)
    options = "--host", "192.0.2.7", "--client-certificates", "--listen", "9999", "--no-log-denied"
    first = made(capsys, *command, "--tls", "--out", str(out), *options)
    text = (out / "mosquitto.conf").read_text()
    assert "listener 9999\n" in text
    assert "require_certificate true\n" in text
    assert "password_file" not in text
    assert "debug" not in text

    again = made(capsys, *command)
    assert (out / "mosquitto.conf").read_text() == text
    assert (again["folder"], again["notes"]) == (str(out), first["notes"])
    assert not any(leaf["renewed"] for leaf in again["certificates"])

    less = "--host", "", "--no-client-certificates", "--listen", "", "--log-denied"
    changed = made(capsys, *command, *less)
    assert changed["notes"] == [
        *first["notes"],
        "--host is not set now, and was 192.0.2.7",
        "--client-certificates is off now, and was on",
        "--listen is not set now, and was 9999",
        "--log-denied is on now, and was off",
    ]
    text = (out / "mosquitto.conf").read_text()
    assert "listener 8883\n" in text
    assert "password_file" in text
    assert "debug" in text
    (home / "broker" / "mosquitto.json").write_text("{")
    assert "mosquitto.json: Input data was truncated; restore it, or" in error_of(capsys, *command)


@pytest.mark.parametrize(
    ("urls", "ca", "version", "notes"),
    [
        (["mqtts://b"], PEM, 2, 0),
        (["mqtt://b", "amqps://localhost"], PEM, 2, 0),
        (["mqtt://b"], PEM, 1, 0),
        (["mqtts://b"], "", 1, 0),
        (["mqtts://b"], PEM * 40, 1, 1),
    ],
)
async def test_a_token_carries_the_authority_where_the_device_needs_it(
    urls: list[str], ca: str, version: int, notes: int, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(ca)
    settings = Config(broker="memory:test", device_urls=urls, ca="ca.pem" if ca else "")
    init(system_ports(), tmp_path / "fed", settings)
    (tmp_path / "fed" / "ca.pem").write_text(ca)
    async with federation(tmp_path / "fed", system_ports()) as fed:
        answer = await fed.command("invite", device="press-07")
    token = token_from_text(answer["token"])
    assert (token.version, token.ca) == (version, ca if version == 2 else "")
    told = [note for note in answer["notes"] if "--ca FILE" in note]
    assert len(told) == notes
