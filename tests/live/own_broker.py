"""A broker of the operator's, as our commands set it up for a federation that is made beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.brokers import Mosquitto, RabbitMQ, free_ports

Command = Callable[..., object]
"""Runs ``fedbus-coordinator`` in the federation's directory with these arguments."""


def mosquitto_beside(
    command: Command, home: Path, base: Path
) -> tuple[str, AbstractContextManager[Mosquitto]]:
    """Its URL, and the broker, which runs within its context; ``home`` is the federation's directory."""
    (port,) = free_ports(1)
    url = f"mqtt://127.0.0.1:{port}"
    command("init", "--broker", url)
    command("broker", "mosquitto", "--pid-file", str(base / "mosquitto.pid"))
    config = (home / "broker" / "mosquitto.conf").read_text()
    config += "persistence_location {base}/\npid_file {base}/mosquitto.pid\n"
    return url, Mosquitto(base, config, port=port)


def at_rabbitmq(command: Command, node: RabbitMQ, secret: Path, devices: str = "mqtt") -> tuple[str, str]:
    """The coordinator's URL, over AMQP, and the devices', who speak ``devices``. ``secret`` is a file for the
    administrator's password."""
    url = f"amqp://127.0.0.1:{node.amqp}"
    device_url = {"amqp": url, "mqtt": f"mqtt://127.0.0.1:{node.mqtt}"}[devices]
    secret.write_text("guest")
    login = ["--management", f"http://guest@127.0.0.1:{node.management}"]
    login += ["--management-password-file", str(secret), "--store-credentials"]
    command("init", "--broker", url, "--device-url", device_url)
    command("broker", "rabbitmq", *login)
    return url, device_url
