"""What a broker that was stopped, or killed with -9, still knows when it is started again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.contract.sites import SITES, Server, Site, serving, site_of
from tests.contract.transports import numbered

COUNT = 200


@pytest.fixture(params=SITES)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    yield from serving(request.param, tmp_path, request)


@pytest.fixture
async def site(server: Server) -> AsyncIterator[Site]:
    async with site_of(server) as here:
        yield here


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_what_waits_outlives_the_broker_or_is_lost_and_everybody_comes_back(
    site: Site, number: signal.Signals
) -> None:
    async with AsyncExitStack() as stack:
        witnesses = []
        for transport in site.transports.values():
            async with transport.join("reader", [f"{transport.root}/all"]) as reader:
                await reader.connected()
            async with transport.join("a") as a, asyncio.TaskGroup() as group:
                for payload in numbered(COUNT):
                    group.create_task(a.publish(f"{transport.root}/all", payload))
            joining = transport.join("witness", [f"{transport.root}/news"])
            witnesses.append(await stack.enter_async_context(joining))
            await witnesses[-1].connected()
        await site.restart(number)
        for transport, witness in zip(site.transports.values(), witnesses, strict=True):
            can = transport.capabilities
            kept = can.outlives_kill if number == signal.SIGKILL else can.outlives_stop
            all_ = f"{transport.root}/all"
            async with transport.join("reader", [all_]) as reader, transport.join("a") as a:
                if not kept:
                    await reader.connected()
                await a.publish(all_, b"after")
                expected = [*(numbered(COUNT) if kept else []), b"after"]
                assert [d.payload for d in await reader.take(len(expected))] == expected
                await witness.connected()
                await a.publish(f"{transport.root}/news", b"news")
                assert [d.payload for d in await witness.take(1)] == [b"news"]
