"""A federation at a broker that somebody else runs, for tests of its doctor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from broker.bus import Connected, Delivery
from broker.checkup import Finding, Level
from broker.ports import Ports
from broker.system import system_ports
from coordinator.config import Config, load_config
from coordinator.connection import bus_for
from coordinator.doctor.examine import examine
from coordinator.keystore import Identity, load_identity
from coordinator.setup import init
from schemas import topics
from schemas.ids import COORDINATOR, broker_user


@dataclass
class Site:
    """A federation whose broker is somebody else's."""

    directory: Path
    config: Config
    identity: Identity
    ports: Ports

    @classmethod
    def make(cls, directory: Path, url: str, *, ca: str = "", management: str = "") -> Self:
        ports, config = system_ports(), Config(broker=url, ca=ca, management=management)
        return cls(directory, config, init(ports, directory, config, "secret"), ports)

    @classmethod
    def found(cls, directory: Path) -> Self:
        """One that a command made."""
        ports = system_ports()
        config = load_config(ports.files, directory, {})
        return cls(directory, config, load_identity(ports.files, directory), ports)

    @property
    def user(self) -> str:
        return broker_user(self.identity.federation, COORDINATOR)

    @property
    def may_write(self) -> list[str]:
        federation = self.identity.federation
        return [topics.all_down(federation), topics.probe(federation)]

    @property
    def may_read(self) -> list[str]:
        federation = self.identity.federation
        return [topics.all_up(federation), topics.probe(federation)]

    async def findings(self, ports: Ports | None = None) -> dict[str, Finding]:
        found = examine(self.directory, self.config, self.identity, ports or self.ports)
        return {finding.name: finding async for finding in found}

    async def faults(self) -> dict[str, Finding]:
        return {
            name: finding for name, finding in (await self.findings()).items() if finding.level is Level.FAULT
        }

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[AsyncIterator[Delivery | Connected]]:
        """The coordinator's own session stands, though not the coordinator."""
        subscriptions = [topics.all_up(self.identity.federation)]
        async with bus_for(self.directory, self.config, self.identity, self.ports, subscriptions) as bus:
            arrivals = bus.incoming()
            assert isinstance(await anext(arrivals), Connected)
            yield arrivals
