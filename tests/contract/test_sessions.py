"""Sessions that do not last: the broker forgets them, with what waits in their queues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.bus import Bus, Connected, Credentials
from broker.connect import connect
from broker.memory import MemoryBroker
from broker.system import system_ports
from tests.brokers import Mosquitto

PATIENCE_S = 30.0
OWN = Credentials("reader", "reader", "right")


@pytest.fixture(params=["memory", "mosquitto"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield "memory:here"
        return
    with Mosquitto(tmp_path / "mosquitto") as broker:
        yield f"mqtt://127.0.0.1:{broker.port}"


async def test_a_session_that_does_not_last_takes_the_queue_of_the_one_before_with_it(url: str) -> None:
    brokers = {"here": MemoryBroker()}

    def bus(credentials: Credentials) -> Bus:
        return connect(url, credentials, ["t"], ports=system_ports(), memory=brokers)

    async with asyncio.timeout(PATIENCE_S):
        async with bus(OWN) as first:
            assert isinstance(await anext(first.incoming()), Connected)
        async with bus(replace(OWN, client_id="sender")) as sender:
            await sender.publish("t", b"for nobody")
        async with bus(replace(OWN, durable=False)) as passing:
            assert isinstance(await anext(passing.incoming()), Connected)
            await passing.publish("t", b"not acknowledged")
        async with bus(OWN) as last:
            arrivals = last.incoming()
            assert isinstance(await anext(arrivals), Connected)
            await last.publish("t", b"new")
            item = await anext(arrivals)
            assert not isinstance(item, Connected)
            assert item.payload == b"new"
