"""Coordinator and agents over every transport, while connections break and the broker is killed with -9.

Every update is receipted once and folded once, every device ends with its newest request, and the log folds
again to the same model.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from broker.system import system_ports
from coordinator.config import Config
from coordinator.state import JobState
from edge_agent.ledger import RequestState
from schemas.ids import COORDINATOR
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN
from tests.contract.proxy import Proxy
from tests.contract.sites import SITES, Server, Site, serving, site_of
from tests.residents import Resident, check_each_counted_once
from tests.standin import Federation, spec

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

DEVICES = 4
ROUNDS = 6
COUNT = 100_000  # parameters: seven chunks of the smallest size
PATIENCE_S = 150.0
SNAPPED_AT, HELD_AT = 2, 4  # versions
# Where coordinator and devices meet.
PAIRS = {
    "embedded": [("embedded", "embedded")],
    "mosquitto": [("mosquitto", "mosquitto")],
    "rabbitmq": [
        ("rabbitmq-amqp", "rabbitmq-mqtt"),
        ("rabbitmq-mqtt", "rabbitmq-mqtt"),
        ("rabbitmq-amqp", "rabbitmq-amqp"),
    ],
}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


class Party:
    """One federation at work, and a hand on its connections."""

    def __init__(self, federation: Federation, proxies: list[Proxy]) -> None:
        self.federation = federation
        self.residents = [Resident(federation, f"d{index}", COUNT) for index in range(DEVICES)]
        self.held = asyncio.Event()
        self.proxies = proxies

    async def run(self, released: asyncio.Event) -> None:
        """Until the job is over, and every device knows that its update was receipted."""
        async with asyncio.TaskGroup() as tasks:
            self.federation.start(tasks)
            for resident in self.residents:
                await resident.enrol()
            agents = [tasks.create_task(resident.run(), name=resident.name) for resident in self.residents]
            job = spec(rounds=ROUNDS, cohort=DEVICES, min_reports=DEVICES, chunk_bytes=CHUNK_BYTES_CHOSEN_MIN)
            await self.federation.command("submit", spec=job)
            await until(lambda: self.versions() >= SNAPPED_AT)
            self.snap()
            await until(lambda: self.versions() >= HELD_AT)
            self.hold()
            await released.wait()
            self.release()
            await until(self.settled)
            for agent in agents:
                agent.cancel()
            await self.federation.stop()

    def versions(self) -> int:
        job = self.federation.coordinator.ledger.state.jobs.get("job")
        return len(job.versions) if job else 0

    def settled(self) -> bool:
        records = [record for resident in self.residents for record in resident.ledger().requests]
        done = all(record.state is RequestState.RECEIPTED for record in records)
        return done and self.federation.job("job").state is JobState.FINISHED

    def hold(self) -> None:
        """Nothing passes any more, whatever is on its way."""
        for proxy in self.proxies:
            proxy.stall()
        for session in self._sessions():
            self.federation.broker.disconnect(session)
        self.held.set()

    def release(self) -> None:
        for proxy in self.proxies:
            proxy.restore()
        for session in self._sessions():
            self.federation.broker.restore(session)

    def snap(self) -> None:
        """Break all connections; new ones are let through."""
        for proxy in self.proxies:
            proxy.snap()
        for session in self._sessions():
            self.federation.broker.disconnect(session)
            self.federation.broker.restore(session)

    def _sessions(self) -> list[str]:
        """In memory."""
        return [] if self.proxies else [COORDINATOR, *(resident.name for resident in self.residents)]

    def check(self) -> None:
        check_each_counted_once(self.federation.directory, self.residents, ROUNDS)


async def take_part(parties: list[Party], restart: Callable[[], Awaitable[None]]) -> None:
    """Run all to their end; the broker is killed while none of their messages passes."""
    released = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for index, party in enumerate(parties):
            tasks.create_task(party.run(released), name=f"party {index}")
        for party in parties:
            await party.held.wait()
        await restart()
        released.set()
    for party in parties:
        party.check()


async def test_in_memory_every_update_is_folded_once_and_every_device_holds_its_newest_request(
    tmp_path: Path,
) -> None:
    async def restart() -> None:
        """There is nothing to restart."""

    await take_part([Party(Federation(tmp_path / "c", system_ports(), COUNT), [])], restart)


@pytest.fixture(params=SITES)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    yield from serving(request.param, tmp_path, request)


@pytest.fixture
async def site(server: Server) -> AsyncIterator[Site]:
    async with site_of(server) as here:
        yield here


async def test_every_update_is_folded_once_and_every_device_holds_its_newest_request(
    site: Site, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        pairs = PAIRS["rabbitmq" if len(site.transports) > 1 else next(iter(site.transports))]
        parties = []
        for index, (centre, devices) in enumerate(pairs):
            at, by = site.transports[centre], site.transports[devices]
            proxies = [await stack.enter_async_context(Proxy(transport.port)) for transport in (at, by)]
            urls = [
                f"{transport.scheme}://127.0.0.1:{proxy.port}"
                for transport, proxy in zip((at, by), proxies, strict=True)
            ]
            config = Config(broker=urls[0], device_urls=urls[1:])
            folder = tmp_path / f"{index}"
            federation = Federation(folder, system_ports(), COUNT, admit=at.admit, config=config)
            parties.append(Party(federation, proxies))
        await take_part(parties, lambda: site.restart(signal.SIGKILL))
