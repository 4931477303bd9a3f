"""Messages whose sender wrote odd things around them: any user may, and RabbitMQ passes them on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from struct import pack

import aiormq
import pytest
from pamqp.commands import Basic

from broker.bus import Connected
from tests.brokers import RabbitMQ
from tests.contract.amqp_site import Site
from tests.contract.transports import PATIENCE_S, Peer

pytestmark = pytest.mark.live


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def long(text: bytes) -> bytes:
    return pack(">I", len(text)) + text


def nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = short(b"") + b"F" + long(table)
    return table


ODD = {
    "timestamp-beyond-all-years": pack(">HQ", 1 << 6, 2**63 - 1),
    "content-type-of-any-bytes": pack(">H", 1 << 15) + short(b"\xff\xfe"),
    "message-id-of-any-bytes": pack(">HB", 1 << 12 | 1 << 7, 2) + short(b"\xff\xfe"),
    "header-name-of-any-bytes": pack(">H", 1 << 13) + long(short(b"\xff") + b"V"),
    "header-with-a-timestamp-beyond": pack(">H", 1 << 13) + long(short(b"x") + b"T" + pack(">Q", 2**64 - 1)),
    "headers-deeper-than-python-goes": pack(">H", 1 << 13) + long(nested(1500)),
}
"""Property flags and properties (AMQP 0-9-1, section 4.2.6.1)."""


class Properties(Basic.Properties):
    """Whatever one likes."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    def marshal(self) -> bytes:
        return self.data


class Key(str):
    """A routing key that holds any bytes, as lone surrogates."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        return super().encode("utf-8", "surrogateescape")


@pytest.fixture
def site(rabbitmq: RabbitMQ) -> Site:
    return Site(rabbitmq)


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


async def send(site: Site, key: str, properties: Basic.Properties) -> None:
    async with aiormq.connect(f"amqp://guest:guest@127.0.0.1:{site.node.amqp}/") as connection:
        channel = await connection.channel()
        await channel.basic_publish(b"odd", exchange="amq.topic", routing_key=key, properties=properties)


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
async def test_a_message_with_odd_properties_is_delivered_and_those_behind_it(
    site: Site, data: bytes
) -> None:
    async with site.bus(site.topic) as bus:
        peer = Peer(bus)
        assert await peer.connected() == Connected(1)
        await send(site, site.topic.replace("/", "."), Properties(data))
        await bus.publish(site.topic, b"next")
        odd, following = [await anext(peer.incoming) for _ in range(2)]
    assert not isinstance(odd, Connected)
    assert not isinstance(following, Connected), "the connection stood"
    assert (odd.topic, odd.payload, following.payload) == (site.topic, b"odd", b"next")


async def test_a_topic_of_any_bytes_is_delivered_as_one_that_nobody_has(site: Site) -> None:
    async with site.bus("fedbus/odd/+") as bus:
        peer = Peer(bus)
        assert await peer.connected() == Connected(1)
        await send(site, Key("fedbus.odd.press-07\udcff"), Basic.Properties())
        await bus.publish("fedbus/odd/x", b"next")
        odd, following = [await anext(peer.incoming) for _ in range(2)]
    assert not isinstance(odd, Connected)
    assert not isinstance(following, Connected), "the connection stood"
    assert (odd.topic, following.payload) == ("fedbus/odd/press-07\ufffd", b"next")
