"""Users at the broker: every device is a user of its own, who may use its own two topics only. A tap
(`roster.tap_id`) is let in and shut out like a device, and may read everybody's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import structlog

from broker import embedded
from broker.embedded import EmbeddedBroker
from broker.ports import Ports
from coordinator.broker_admin.roster import AccessError, Login, Roster, user
from coordinator.config import Config
from schemas import topics
from schemas.ids import COORDINATOR, DeviceId, FederationId, broker_user
from schemas.limits import RESEND_CAP_S, RESEND_FIRST_S

AGAIN_S = 0.3
log = structlog.get_logger()


class Access(Protocol):
    """The broker's users, as far as this coordinator may change them."""

    async def admit(self, device: DeviceId, password: str) -> str:
        """Let a device log in with this password. Durable on return.

        Returns what is left for the broker's administrator to do, in one line; empty for nothing. Raises
        `AccessError` (nothing is certain: do it again), OSError.
        """

    async def shut_out(self, device: DeviceId) -> None:
        """Take a device's access away; tries until it is done."""


class EmbeddedAccess:
    """Writes the embedded broker's users file."""

    def __init__(self, ports: Ports, broker: EmbeddedBroker, federation: FederationId) -> None:
        self._ports = ports
        self._path: Path = broker.users_path
        self._federation = federation
        self._turn = asyncio.Lock()  # the users file wants one writer at a time

    async def admit(self, device: DeviceId, password: str) -> str:
        async with self._turn:
            await self._ports.offload.run(self.put, device, password)
        return ""

    async def shut_out(self, device: DeviceId) -> None:
        async with self._turn:
            name = broker_user(self._federation, device)
            await self._ports.offload.run(embedded.remove_user, self._ports.files, self._path, name)

    def put(self, device: DeviceId, password: str) -> None:
        """As `admit`, when nobody else writes. Blocking."""
        known = user(self._federation, device, Login("", ""))
        embedded.write_user(
            self._ports.files,
            self._path,
            known.name,
            password,
            publish=known.publish,
            subscribe=known.subscribe,
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


class Users(Protocol):
    """How one kind of broker is told of its users. Blocking.

    ``overhears``: it may miss what it is told while it still reads what it was told before.
    """

    overhears: bool

    def update(self, logins: Mapping[DeviceId, Login], changed: DeviceId) -> str:
        """``changed`` was added, replaced or removed, and ``logins`` are all there are now. Idempotent.

        Returns what is left for the broker's administrator to do; empty for nothing. Raises `AccessError`,
        OSError.
        """


class UnmanagedUsers:
    """A broker that nobody has set up with fedbus."""

    overhears = False

    def update(self, logins: Mapping[DeviceId, Login], changed: DeviceId) -> str:
        del logins, changed
        return (
            "if this broker wants a login, make it know the users of this federation: "
            "`fedbus-coordinator broker mosquitto` or `fedbus-coordinator broker rabbitmq`"
        )


class ListedAccess:
    """Keeps the roster, and the broker up to date with it."""

    def __init__(self, ports: Ports, directory: Path, users: Users) -> None:
        self._ports = ports
        self._roster = Roster(ports, directory)
        self._users = users
        self._turn = asyncio.Lock()
        self._leaving: set[DeviceId] = set()

    async def admit(self, device: DeviceId, password: str) -> str:
        async with self._turn:
            self._leaving.discard(device)
            note, _ = await self._ports.offload.run(self._change, device, password)
        await self._again(device)
        return note

    async def shut_out(self, device: DeviceId) -> None:
        self._leaving.add(device)
        delay_s, failed = RESEND_FIRST_S, False
        while device in self._leaving:  # not if it was invited again meanwhile
            try:
                async with self._turn:
                    note, new = await self._ports.offload.run(self._change, device, "")
                if new or failed:  # after a restart all who ever left are shut out again
                    await self._again(device)
            except (AccessError, OSError) as error:
                log.warning("the broker still admits a revoked device", device=device, cause=str(error))
                await asyncio.sleep(delay_s)
                delay_s, failed = min(2 * delay_s, RESEND_CAP_S), True
                continue
            self._leaving.discard(device)
            if note:
                log.warning("the broker may still admit a revoked device", device=device, remedy=note)

    async def _again(self, device: DeviceId) -> None:
        """Tell a broker once more that may have missed it."""
        if self._users.overhears:
            await asyncio.sleep(AGAIN_S)
            async with self._turn:
                await self._ports.offload.run(self._tell, device)

    def _change(self, device: DeviceId, password: str) -> tuple[str, bool]:
        """What is left to do, and whether the roster is another now."""
        with self._roster.locked():
            before = self._roster.read()
            if password:
                self._roster.put(device, password)
            else:
                self._roster.remove(device)
            logins = self._roster.read()
            return self._users.update(logins, device), logins != before

    def _tell(self, device: DeviceId) -> None:
        with self._roster.locked():
            self._users.update(self._roster.read(), device)


def access_for(ports: Ports, directory: Path, config: Config, federation: FederationId) -> Access:
    """How a broker of the operator's is told, by the settings."""
    if config.broker_files:
        from coordinator.broker_admin.mosquitto import MosquittoUsers

        return ListedAccess(ports, directory, MosquittoUsers(ports, config, federation))
    if config.management:
        from coordinator.broker_admin.rabbitmq import RabbitUsers

        return ListedAccess(ports, directory, RabbitUsers.of(ports, directory, config, federation))
    return ListedAccess(ports, directory, UnmanagedUsers())
