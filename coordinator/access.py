"""Users at the broker: every device is a user of its own, who may use its own two topics only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import structlog

from broker import embedded
from broker.embedded import EmbeddedBroker
from broker.ports import Ports
from schemas import topics
from schemas.ids import COORDINATOR, DeviceId, FederationId, broker_user

BROKER_FOLDER = "broker"
log = structlog.get_logger()


class Access(Protocol):
    """The broker's users, as far as this coordinator may change them."""

    async def admit(self, device: DeviceId, password: str) -> None:
        """Let a device log in with this password. Durable on return. Raises OSError."""

    async def shut_out(self, device: DeviceId) -> None:
        """Take a device's access away."""


class EmbeddedAccess:
    """Writes the embedded broker's users file."""

    def __init__(self, ports: Ports, broker: EmbeddedBroker, federation: FederationId) -> None:
        self._ports = ports
        self._path: Path = broker.users_path
        self._federation = federation
        self._turn = asyncio.Lock()  # the users file wants one writer at a time

    async def admit(self, device: DeviceId, password: str) -> None:
        async with self._turn:
            await self._ports.offload.run(self._admit, device, password)

    async def shut_out(self, device: DeviceId) -> None:
        async with self._turn:
            user = broker_user(self._federation, device)
            await self._ports.offload.run(embedded.remove_user, self._ports.files, self._path, user)

    def _admit(self, device: DeviceId, password: str) -> None:
        embedded.write_user(
            self._ports.files,
            self._path,
            broker_user(self._federation, device),
            password,
            publish=[topics.up(self._federation, device)],
            subscribe=[topics.down(self._federation, device)],
            entropy=self._ports.entropy,
        )

    def admit_coordinator(self, password: str) -> None:
        """At the beginning, when nobody else writes. Blocking."""
        embedded.write_user(
            self._ports.files,
            self._path,
            broker_user(self._federation, COORDINATOR),
            password,
            publish=[topics.all_down(self._federation)],
            subscribe=[topics.all_up(self._federation)],
            entropy=self._ports.entropy,
        )


class OwnersAccess:
    """A broker that somebody else administers: users are made there, by hand or by its owner's tools."""

    async def admit(self, device: DeviceId, password: str) -> None:
        log.info("the broker's administrator must know this device", device=device)

    async def shut_out(self, device: DeviceId) -> None:
        log.warning("remove the revoked device's user at the broker, too", device=device)
