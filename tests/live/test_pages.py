"""The pages for operators, typed from their first block to their last, with a real broker."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.brokers import RABBITMQ, RabbitMQ, free_ports
from tests.live.installation import SystemMosquitto
from tests.live.operators import ROOT, Machines, Step, steps
from tests.live.test_readme import write_data

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]

SERVER: Final = "hub.example.org"
CERTIFY: Final = "--client-certificates"


def page(name: str) -> list[Step]:
    found = steps((ROOT / "docs" / name).read_text(encoding="utf-8"))
    assert len(found) > 4
    return found


def at(typed: list[Step], part: str) -> int:
    """Where the one block with this in it stands."""
    (number,) = [number for number, step in enumerate(typed) if part in step.block]
    return number


class MosquittoUnit:
    """The system's Mosquitto, not running at first."""

    def __init__(self, broker: SystemMosquitto, stack: ExitStack) -> None:
        self._broker = broker
        self._stack = stack

    def restart(self) -> None:
        self._stack.close()
        self._stack.enter_context(self._broker)

    def reload(self) -> None:
        self._broker.reload()


class RabbitUnit:
    """The system's RabbitMQ."""

    def __init__(self, node: RabbitMQ) -> None:
        self._node = node

    def restart(self) -> None:
        self._node.stop()
        self._node.start()

    def reload(self) -> None:
        raise AssertionError("RabbitMQ is told by its management API")


@contextmanager
def with_mosquitto(base: Path) -> Iterator[Machines]:
    (port,) = free_ports(1)
    local = {
        f"mqtts://{SERVER}": f"mqtts://localhost:{port}",
        f"{SERVER}:8883": f"localhost:{port}",
        SERVER: "localhost",
    }
    with ExitStack() as stack:
        unit = MosquittoUnit(SystemMosquitto(base / "hub/etc/mosquitto", port), stack)
        with Machines(base, local, ("mosquitto", unit)) as machines:
            yield machines


@contextmanager
def with_rabbitmq(base: Path) -> Iterator[Machines]:
    with RabbitMQ(base / "hub/etc/rabbitmq") as node:
        local = {
            "amqps://localhost": f"amqps://localhost:{node.amqps}",
            "broker localhost:5671": f"broker localhost:{node.amqps}",
            f"mqtts://{SERVER}": f"mqtts://localhost:{node.mqtts}",
            SERVER: "localhost",
            "http://fedbus-admin@localhost": f"http://fedbus-admin@localhost:{node.management}",
        }
        with Machines(base, local, ("rabbitmq-server", RabbitUnit(node))) as machines:
            variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in node.environment.items())
            ctl = f'#!/bin/sh\nexec env -i {variables} {RABBITMQ}/rabbitmqctl "$@"\n'
            machines.stand_in("rabbitmqctl", ctl)
            yield machines


def follow(machines: Machines, typed: list[Step]) -> None:
    """Type it all, the device's data being where the page says."""
    for step in typed:
        machines.type(step)
        data = machines.base / "press-07" / "srv" / "fedbus"
        if data.exists() and not (data / "press-07.npz").exists():
            write_data(data)


def exported(machines: Machines) -> list[bytes]:
    """The models on both machines."""
    return [(machines.base / m / "srv/fedbus/defects.safetensors").read_bytes() for m in ("hub", "press-07")]


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path: the coordinator's socket lies deep in it."""
    return tmp_path_factory.mktemp("m")


def test_with_mosquitto_two_machines_come_to_one_model_and_to_certificates_on_both_sides(base: Path) -> None:
    with with_mosquitto(base) as machines:
        follow(machines, page("mosquitto.md"))
        models = exported(machines)
    assert models[0] == models[1]


def test_with_rabbitmq_two_machines_come_to_one_model_and_to_certificates_on_both_sides(base: Path) -> None:
    ours, other = page("rabbitmq.md"), page("mosquitto.md")
    invite, certify, show = at(other, "fed invite press-07"), at(other, CERTIFY), at(other, "/client.crt")
    here = at(ours, CERTIFY)
    with with_rabbitmq(base) as machines:
        follow(machines, [*ours[:here], *other[invite:certify], *ours[here:], *other[show:]])
        models = exported(machines)
    assert models[0] == models[1]
