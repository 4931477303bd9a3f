"""Fixtures: each transport as `transport`, the embedded one alone as `embedded`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from broker.amqp import QUEUE_ARGUMENTS
from broker.embedded import EmbeddedBroker
from broker.system import system_ports
from tests.brokers import Mosquitto, RabbitMQ, free_ports
from tests.contract.capabilities import those
from tests.contract.transports import EmbeddedTransport, MemoryTransport, RealTransport, Transport

_numbers = itertools.count()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A real embedded broker, one per module."""
    broker = EmbeddedBroker(system_ports(), tmp_path_factory.mktemp("broker"), free_ports(1)[0])
    asyncio.run(broker.ensure())
    try:
        yield broker
    finally:
        asyncio.run(broker.stop())


@pytest.fixture
async def embedded(daemon: EmbeddedBroker) -> AsyncIterator[EmbeddedTransport]:
    async with AsyncExitStack() as stack:
        yield EmbeddedTransport(system_ports(), daemon, next(_numbers), stack)


@pytest.fixture(params=those())
def kind(request: pytest.FixtureRequest) -> str:
    """The transport under test; a test names those that it is about with `parametrize`."""
    return str(request.param)


@pytest.fixture
def server(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[EmbeddedBroker | Mosquitto | RabbitMQ | None]:
    """Its broker."""
    match kind:
        case "memory":
            yield None
        case "embedded":
            yield request.getfixturevalue("daemon")
        case "mosquitto":
            with Mosquitto(tmp_path / "mosquitto", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
                yield broker
        case _:
            yield request.getfixturevalue("rabbitmq")


@pytest.fixture
async def transport(
    kind: str, server: EmbeddedBroker | Mosquitto | RabbitMQ | None
) -> AsyncIterator[Transport]:
    async with AsyncExitStack() as stack:
        match server:
            case EmbeddedBroker():
                yield EmbeddedTransport(system_ports(), server, next(_numbers), stack)
            case Mosquitto():
                yield mosquitto_transport(server, stack)
            case RabbitMQ():
                yield rabbitmq_transport(kind, server, stack)
            case None:
                yield MemoryTransport()


def mosquitto_transport(broker: Mosquitto, stack: AsyncExitStack) -> RealTransport:
    return RealTransport("mosquitto", system_ports(), broker.port, broker.admit, next(_numbers), stack)


def rabbitmq_transport(kind: str, node: RabbitMQ, stack: AsyncExitStack) -> RealTransport:
    """``kind`` is the protocol that its clients speak."""

    def admit(user: str, password: str, publish: Sequence[str], subscribe: Sequence[str]) -> None:
        node.operator.admit(user, password, publish, subscribe)
        if kind == "rabbitmq-amqp":
            node.operator.declare(user, QUEUE_ARGUMENTS)

    port = node.amqp if kind == "rabbitmq-amqp" else node.mqtt
    return RealTransport(kind, system_ports(), port, admit, next(_numbers), stack)
