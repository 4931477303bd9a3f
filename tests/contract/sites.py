"""Real brokers that a test may stop, kill and start again, with all the transports that each serves at once:
RabbitMQ takes its time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from broker.embedded import EmbeddedBroker
from broker.system import system_ports
from tests.brokers import Mosquitto, RabbitMQ, free_ports
from tests.contract.conftest import mosquitto_transport, rabbitmq_transport
from tests.contract.transports import EmbeddedTransport, RealTransport

Server = EmbeddedBroker | Mosquitto | RabbitMQ
SITES = ["embedded", "mosquitto", "rabbitmq"]


@dataclass
class Site:
    """One broker, and the transports that it serves, by kind."""

    transports: dict[str, RealTransport]
    restart: Callable[[int], Awaitable[None]]
    """End it with this signal, and start it again."""


def serving(name: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The body of a fixture: a broker that serves."""
    match name:
        case "embedded":
            daemon = EmbeddedBroker(system_ports(), folder / "embedded", free_ports(1)[0])
            asyncio.run(daemon.ensure())
            try:
                yield daemon
            finally:
                asyncio.run(daemon.stop())
        case "mosquitto":
            with Mosquitto(folder / "mosquitto", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
                yield broker
        case _:
            yield request.getfixturevalue("rabbitmq")


@asynccontextmanager
async def site_of(server: Server) -> AsyncIterator[Site]:
    """What is to be tested on a broker."""
    async with AsyncExitStack() as stack:
        match server:
            case EmbeddedBroker():
                transport: RealTransport = EmbeddedTransport(system_ports(), server, 0, stack)
                yield Site({"embedded": transport}, partial(_restart_embedded, server))
            case Mosquitto():
                transport = mosquitto_transport(server, stack)
                yield Site({"mosquitto": transport}, partial(_restart, server))
            case RabbitMQ():
                kinds = ("rabbitmq-amqp", "rabbitmq-mqtt")
                both = {kind: rabbitmq_transport(kind, server, stack) for kind in kinds}
                yield Site(both, partial(_restart, server))


async def _restart_embedded(broker: EmbeddedBroker, number: int) -> None:
    if number == signal.SIGKILL:
        os.kill(json.loads((broker.users_path.parent / "broker.json").read_text())["pid"], number)
    else:
        await broker.stop()
    await broker.ensure()


async def _restart(broker: Mosquitto | RabbitMQ, number: int) -> None:
    if isinstance(broker, RabbitMQ):
        await asyncio.to_thread(broker.settle)
    await asyncio.to_thread(broker.stop, number)
    await asyncio.to_thread(broker.start)
