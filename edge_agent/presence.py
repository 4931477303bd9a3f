"""Who this device is and what it holds: told after each connection until the coordinator's answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.bus import Bus, BusUndelivered, Credentials
from broker.connect import check_device_url, connect
from broker.pacing import RETURN_MAX_S
from broker.ports import Files, Ports
from edge_agent.config import Config, ConfigError
from edge_agent.identity import Identity
from edge_agent.ledger import Ledger
from edge_agent.listen import data_is_there
from schemas.encodings import ENCODINGS
from schemas.events import ChallengeAnswer, DeviceStatus, Event, RequestRef, StateRequest
from schemas.limits import RESEND_CAP_S, RESEND_FIRST_S

if TYPE_CHECKING:
    from broker.memory import MemoryBroker


@dataclass(frozen=True, slots=True)
class Machine:
    """What the coordinator is told about this device."""

    cores: int = 1
    memory_bytes: int = 0


UNKNOWN_MACHINE: Final = Machine()


def bus_for(
    identity: Identity, config: Config, ports: Ports, *, memory: Mapping[str, MemoryBroker] | None = None
) -> Bus:
    """The device's bus, not entered.

    Raises `broker.bus.BusError` for a URL that can't be used, `edge_agent.config.ConfigError` for settings.
    """
    url = config.broker or identity.urls[0]
    check_device_url(url)
    own = credentials(identity, config, ports.files)
    topics = [identity.down_topic]
    return connect(url, own, topics, ports=ports, memory=memory, return_max_s=RETURN_MAX_S)


def credentials(identity: Identity, config: Config, files: Files) -> Credentials:
    """Who the device is to its broker, and whom it trusts. Raises `edge_agent.config.ConfigError`."""
    own = identity.credentials()
    tls = own.tls
    if config.ca:
        try:
            tls = replace(tls, ca=files.read(Path(config.ca)).decode())
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", "") or "not a PEM file"
            raise ConfigError(f"setting ca: {config.ca}: {cause}; name the PEM file") from error
    if config.certificate:
        key = Path(config.key) if config.key else None
        tls = replace(tls, certificate=Path(config.certificate), key=key)
    return replace(own, tls=tls)


class Presence:
    """Status and state of the device, repeated with back-off. ``identity`` may be replaced meanwhile."""

    def __init__(
        self,
        files: Files,
        identity: Identity,
        ledger: Ledger,
        config: Config,
        machine: Machine,
        installed: Callable[[], Collection[str]],
        send: Callable[[Event], Awaitable[object]],
    ) -> None:
        self.identity = identity
        self._files = files
        self._ledger = ledger
        self._config = config
        self._machine = machine
        self._installed = installed
        self._send = send
        self._asking = False
        self._news = asyncio.Event()

    def ask(self) -> None:
        """Tell it all again, now: a connection stands, or something may have been missed."""
        self._asking = True
        self._news.set()

    def answered(self) -> None:
        """The coordinator's state came."""
        self._asking = False
        self._news.set()

    async def run(self) -> None:
        """Until cancelled. Raises `broker.bus.BusRefused`."""
        while True:
            await self._news.wait()
            delay_s = RESEND_FIRST_S
            while self._asking:
                self._news.clear()
                with suppress(BusUndelivered):
                    await self._tell()
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._news.wait()
                delay_s = min(2 * delay_s, RESEND_CAP_S)
            self._news.clear()

    async def _tell(self) -> None:
        if not self.identity.active:
            await self._send(ChallengeAnswer(challenge=self.identity.challenge))
        await self._send(self.status())
        held = [RequestRef(record.job, record.number) for record in self._ledger.held()]
        await self._send(StateRequest(requests=held, key_set=self.identity.keys().number))

    def status(self) -> DeviceStatus:
        """What the coordinator may choose by. ``samples`` are those of the last training, 0 if unknown."""
        here = self._installed()
        known = self._ledger.data.samples
        return DeviceStatus(
            agent=_build(),
            cores=self._machine.cores,
            memory_bytes=self._machine.memory_bytes,
            power=self._config.policy.power,
            tasks=[task for task in self._config.policy.tasks if task in here],
            samples={
                name: known.get(name, 0)
                for name, path in self._config.data.items()
                if data_is_there(self._files, path)
            },
            encodings=list(ENCODINGS),
        )


@cache  # looking it up reads the package's files
def _build() -> str:
    try:
        return f"fedbus {version('fedbus')}"
    except PackageNotFoundError:
        return "fedbus, not installed"
