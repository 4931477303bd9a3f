"""Fixtures: each transport as `transport`, the embedded one alone as `embedded`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from broker.embedded import EmbeddedBroker
from broker.system import system_ports
from tests.contract.transports import CAPABILITIES, EmbeddedTransport, MemoryTransport, Transport

_numbers = itertools.count()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A real embedded broker, one per module."""
    broker = EmbeddedBroker(system_ports(), tmp_path_factory.mktemp("broker"), 0)
    asyncio.run(broker.ensure())
    try:
        yield broker
    finally:
        asyncio.run(broker.stop())


@pytest.fixture
async def embedded(daemon: EmbeddedBroker) -> AsyncIterator[EmbeddedTransport]:
    async with AsyncExitStack() as stack:
        yield EmbeddedTransport(system_ports(), daemon, next(_numbers), stack)


@pytest.fixture(params=CAPABILITIES)
async def transport(request: pytest.FixtureRequest, daemon: EmbeddedBroker) -> AsyncIterator[Transport]:
    if request.param == "memory":
        yield MemoryTransport()
        return
    async with AsyncExitStack() as stack:
        yield EmbeddedTransport(system_ports(), daemon, next(_numbers), stack)
