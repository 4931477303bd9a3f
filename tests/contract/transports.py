"""The transports under test, behind one door, and what each can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from broker.bus import Bus, Connected, Credentials, Delivery
from broker.embedded import EmbeddedBroker, write_user
from broker.memory import MemoryBroker, MemoryBus
from broker.mqtt import MqttBus
from broker.ports import Ports
from tests.contract.proxy import Proxy

PATIENCE_S = 30.0
WINDOW = 8


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport promises beyond the common ground."""

    redelivers: bool
    """What was not acknowledged when the connection broke comes again."""


CAPABILITIES = {
    "memory": Capabilities(redelivers=True),
    # amqtt forgets what is in flight when a connection ends.
    "embedded": Capabilities(redelivers=False),
}


class Peer:
    """A bus and its one reader."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.incoming = bus.incoming()

    async def publish(self, topic: str, payload: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.bus.publish(topic, payload)

    async def connected(self) -> Connected:
        """The next `Connected`; deliveries before it are not expected."""
        async with asyncio.timeout(PATIENCE_S):
            item = await anext(self.incoming)
        assert isinstance(item, Connected)
        return item

    async def take(self, count: int, *, ack: bool = True) -> list[Delivery]:
        """The next deliveries; passes over `Connected`."""
        taken: list[Delivery] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(taken) < count:
                item = await anext(self.incoming)
                if not isinstance(item, Connected):
                    taken.append(item)
                    if ack:
                        await item.ack()
        return taken


class Transport(Protocol):
    """A broker, its clients, and a hand on the wire."""

    capabilities: Capabilities
    root: str
    """Topics of this test begin so."""

    def join(
        self, name: str, subscriptions: Sequence[str] = (), *, password: str = "right"
    ) -> AbstractAsyncContextManager[Peer]:
        """Connect as ``name``; leaving it, the broker has noticed that the client is gone."""

    async def cut(self, name: str) -> None:
        """Break the client's connection and refuse new ones; it has noticed on return."""

    def restore(self, name: str) -> None: ...


class MemoryTransport:
    def __init__(self) -> None:
        self.capabilities = CAPABILITIES["memory"]
        self.root = "fedbus/x"
        self._passwords: dict[str, str] = {}
        self._broker = MemoryBroker(passwords=self._passwords, window_deliveries=WINDOW)

    @asynccontextmanager
    async def join(
        self, name: str, subscriptions: Sequence[str] = (), *, password: str = "right"
    ) -> AsyncIterator[Peer]:
        self._passwords[name] = "right"
        async with MemoryBus(self._broker, Credentials(name, name, password), subscriptions) as bus:
            yield Peer(bus)

    async def cut(self, name: str) -> None:
        self._broker.disconnect(name)

    def restore(self, name: str) -> None:
        self._broker.restore(name)


class EmbeddedTransport:
    """Clients of a real daemon; each goes through a proxy of its own."""

    def __init__(self, ports: Ports, daemon: EmbeddedBroker, number: int, stack: AsyncExitStack) -> None:
        self.capabilities = CAPABILITIES["embedded"]
        self.root = f"fedbus/x{number}"
        self.ports = ports
        self.daemon = daemon
        self.proxies: dict[str, Proxy] = {}
        self._number = number
        self._stack = stack

    def user(self, name: str) -> str:
        return f"{name}-{self._number}"

    def invite(self, name: str, publish: Sequence[str] = ("#",), subscribe: Sequence[str] = ("#",)) -> None:
        write_user(
            self.ports.files,
            self.daemon.users_path,
            self.user(name),
            "right",
            publish=publish,
            subscribe=subscribe,
            entropy=self.ports.entropy,
        )

    @asynccontextmanager
    async def join(
        self, name: str, subscriptions: Sequence[str] = (), *, password: str = "right"
    ) -> AsyncIterator[Peer]:
        self.invite(name)
        async with self.enter(name, subscriptions, password=password) as peer:
            yield peer

    @asynccontextmanager
    async def enter(
        self,
        name: str,
        subscriptions: Sequence[str] = (),
        *,
        password: str = "right",
        suffix: str = "",
        wire: str = "",
    ) -> AsyncIterator[Peer]:
        """As `join`, for a user that was invited before (or not); ``wire`` names the proxy."""
        wire = wire or name
        if wire not in self.proxies:
            self.proxies[wire] = await self._stack.enter_async_context(Proxy(self.daemon.port))
        credentials = Credentials(self.user(name) + suffix, self.user(name), password)
        async with MqttBus(
            "127.0.0.1",
            self.proxies[wire].port,
            credentials,
            subscriptions,
            clock=self.ports.clock,
            entropy=self.ports.entropy,
            window_deliveries=WINDOW,
        ) as bus:
            yield Peer(bus)
        async with asyncio.timeout(PATIENCE_S):
            await self.proxies[wire].idle()

    async def cut(self, name: str) -> None:
        await self.proxies[name].cut()

    def restore(self, name: str) -> None:
        self.proxies[name].restore()
