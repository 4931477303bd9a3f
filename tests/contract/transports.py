"""The transports under test, behind one door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Protocol

from broker.amqp import amqp_bus
from broker.bus import Bus, BusUndelivered, Connected, Credentials, Delivery
from broker.embedded import EmbeddedBroker, write_user
from broker.memory import MemoryBroker, MemoryBus
from broker.mqtt import mqtt_bus
from broker.ports import Ports
from tests.brokers import Admit
from tests.contract.capabilities import CAPABILITIES, WINDOW, Capabilities
from tests.contract.proxy import Proxy

PATIENCE_S = 60.0


def numbered(count: int, size: int = 0) -> list[bytes]:
    """Messages that tell their place."""
    return [str(number).encode().ljust(size) for number in range(count)]


class Peer:
    """A bus and its one reader."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.incoming = bus.incoming()

    async def publish(self, topic: str, payload: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.bus.publish(topic, payload)

    async def publish_in_vain(self, topic: str, payload: bytes = b"") -> None:
        """Where nobody listens: some brokers say so. Over MQTT, what was said before has then been read."""
        with suppress(BusUndelivered):
            await self.publish(topic, payload)

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
        self,
        name: str,
        subscriptions: Sequence[str] = (),
        *,
        password: str = "right",
        publish: Sequence[str] = ("#",),
    ) -> AbstractAsyncContextManager[Peer]:
        """Connect as ``name``, who may ``publish`` there.

        Leaving it, the broker has noticed that the client is gone.
        """

    async def cut(self, name: str) -> None:
        """Break the client's connection and refuse new ones; both sides have noticed on return."""

    def restore(self, name: str) -> None: ...


class MemoryTransport:
    def __init__(self) -> None:
        self.capabilities = CAPABILITIES["memory"]
        self.root = "fedbus/x"
        self._passwords: dict[str, str] = {}
        self._broker = MemoryBroker(passwords=self._passwords, window_deliveries=WINDOW)

    @asynccontextmanager
    async def join(
        self,
        name: str,
        subscriptions: Sequence[str] = (),
        *,
        password: str = "right",
        publish: Sequence[str] = ("#",),
    ) -> AsyncIterator[Peer]:
        self._passwords[name] = "right"
        async with MemoryBus(self._broker, Credentials(name, name, password), subscriptions) as bus:
            yield Peer(bus)

    async def cut(self, name: str) -> None:
        self._broker.disconnect(name)

    def restore(self, name: str) -> None:
        self._broker.restore(name)


class RealTransport:
    """Clients of a real broker; each goes through a proxy of its own."""

    def __init__(
        self, kind: str, ports: Ports, port: int, admit: Admit, number: int, stack: AsyncExitStack
    ) -> None:
        self.kind = kind
        self.capabilities = CAPABILITIES[kind]
        self.root = f"fedbus/x{number}"
        self.scheme = "amqp" if kind == "rabbitmq-amqp" else "mqtt"
        self.ports = ports
        self.port = port
        self.proxies: dict[str, Proxy] = {}
        self.admit = admit
        self._number = number
        self._stack = stack

    def user(self, name: str) -> str:
        return f"{name}-{self._number}"

    def invite(self, name: str, publish: Sequence[str] = ("#",), subscribe: Sequence[str] = ("#",)) -> None:
        self.admit(self.user(name), "right", publish, subscribe)

    @asynccontextmanager
    async def join(
        self,
        name: str,
        subscriptions: Sequence[str] = (),
        *,
        password: str = "right",
        publish: Sequence[str] = ("#",),
    ) -> AsyncIterator[Peer]:
        self.invite(name, publish)
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
        proxy = await self._proxy(wire or name)
        credentials = Credentials(self.user(name) + suffix, self.user(name), password)
        async with self._bus(proxy.port, credentials, subscriptions) as bus:
            yield Peer(bus)
        async with asyncio.timeout(PATIENCE_S):
            await proxy.idle()

    async def _proxy(self, wire: str) -> Proxy:
        if wire not in self.proxies:
            self.proxies[wire] = await self._stack.enter_async_context(Proxy(self.port))
        return self.proxies[wire]

    def _bus(self, port: int, credentials: Credentials, subscriptions: Sequence[str]) -> Bus:
        bus = amqp_bus if self.scheme == "amqp" else mqtt_bus
        return bus(
            "127.0.0.1",
            port,
            credentials,
            subscriptions,
            clock=self.ports.clock,
            entropy=self.ports.entropy,
            window_deliveries=WINDOW,
        )

    async def url(self, name: str) -> str:
        """For `broker.connect`, through the proxy of ``name``; the client id is the user."""
        return f"{self.scheme}://{self.user(name)}:right@127.0.0.1:{(await self._proxy(name)).port}"

    async def cut(self, name: str) -> None:
        await self.proxies[name].cut()

    def restore(self, name: str) -> None:
        self.proxies[name].restore()


class EmbeddedTransport(RealTransport):
    """The embedded broker's daemon."""

    def __init__(self, ports: Ports, daemon: EmbeddedBroker, number: int, stack: AsyncExitStack) -> None:
        def admit(user: str, password: str, publish: Sequence[str], subscribe: Sequence[str]) -> None:
            write_user(
                ports.files,
                daemon.users_path,
                user,
                password,
                publish=publish,
                subscribe=subscribe,
                entropy=ports.entropy,
            )

        super().__init__("embedded", ports, daemon.port, admit, number, stack)
        self.daemon = daemon
