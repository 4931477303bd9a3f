"""The same over AMQP: a device with a queue of its own tries every other topic and queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiormq
import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused

from broker.bus import Bus, BusRefused, BusUndelivered, Connected, Credentials
from broker.connect import connect
from broker.system import system_ports
from schemas import topics
from schemas.enrolment import Token
from schemas.ids import DeviceId, broker_user
from tests.brokers import RabbitMQ
from tests.live.installation import Installation

pytestmark = [pytest.mark.live, pytest.mark.slow]

MOLE, VICTIM = DeviceId("mole"), DeviceId("victim")
PATIENCE_S = 20.0


class Federation:
    """Its parties, each as its own user."""

    def __init__(self, base: Path, node: RabbitMQ) -> None:
        self.url = f"amqp://127.0.0.1:{node.amqp}"
        self.log = node.log
        site = Installation(base / "fed", self.url)
        (base / "password").write_text("guest\n")
        url = f"http://guest@127.0.0.1:{node.management}"
        options = "--management", url, "--management-password-file", str(base / "password")
        site.command("broker", "rabbitmq", *options, "--store-credentials")
        with site:
            self.tokens: dict[str, Token] = {name: site.invite(name)[1] for name in (MOLE, VICTIM)}
        self.id = site.identity.federation
        self.coordinator = Credentials(site.login[0], *site.login)

    def device(self, name: DeviceId, session: str = "") -> Credentials:
        user = broker_user(self.id, name)
        return Credentials(session or user, user, self.tokens[name].password)

    def bus(self, who: Credentials, *subscriptions: str) -> Bus:
        return connect(self.url, who, subscriptions, ports=system_ports())

    async def told(self, what: str) -> None:
        """Wait until the operator can read in the log that the mole tried this."""
        user = broker_user(self.id, MOLE)
        line = f"access to {what} in vhost '/' refused for user '{user}'"
        async with asyncio.timeout(PATIENCE_S):
            while line not in self.log.read_text():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, rabbitmq: RabbitMQ) -> Federation:
    return Federation(tmp_path_factory.mktemp("amqp"), rabbitmq)


def key(topic: str) -> str:
    return topic.replace("/", ".").replace("+", "*")


async def heard(bus: Bus) -> list[bytes]:
    """What arrives before ``end``."""
    payloads = []
    async with asyncio.timeout(PATIENCE_S):
        async for item in bus.incoming():
            if isinstance(item, Connected):
                continue
            await item.ack()
            payloads.append(item.payload)
            if item.payload == b"end":
                return payloads
    raise AssertionError("a bus never ends")


async def test_what_a_device_publishes_elsewhere_reaches_nobody(federation: Federation) -> None:
    ours, fed = federation.id, federation
    other = type(ours)(bytes(16))
    forbidden = [
        topics.up(ours, VICTIM),
        topics.down(ours, MOLE),
        topics.down(ours, VICTIM),
        topics.probe(ours),
        topics.up(other, MOLE),
        topics.down(other, VICTIM),
        "plant/line-1",
    ]
    up, down = topics.up(ours, MOLE), topics.down(ours, VICTIM)
    async with (
        fed.bus(fed.device(MOLE), topics.down(ours, MOLE)) as mole,
        fed.bus(fed.device(VICTIM), down) as victim,
        fed.bus(fed.coordinator, topics.all_up(ours)) as coordinator,
    ):
        for topic in forbidden:
            await mole.publish(up, b"allowed")
            with pytest.raises(BusUndelivered, match=r"may not|not let|refused"):
                await mole.publish(topic, b"denied")
            await fed.told(f"topic '{key(topic)}' in exchange 'amq.topic'")
        await mole.publish(up, b"end")
        await coordinator.publish(down, b"end")
        assert await heard(victim) == [b"end"]
        assert await heard(coordinator) == [*([b"allowed"] * len(forbidden)), b"end"]


async def test_what_a_device_subscribes_to_elsewhere_is_refused(federation: Federation) -> None:
    ours, fed = federation.id, federation
    other = type(ours)(bytes(16))
    forbidden = [
        topics.up(ours, MOLE),
        topics.all_up(ours),
        topics.down(ours, VICTIM),
        topics.all_down(ours),
        topics.probe(ours),
        topics.all_up(other),
        topics.down(other, MOLE),
        f"fedbus/{ours.hex()}/#",
        "#",
        "plant/line-1",
    ]
    own = topics.down(ours, MOLE)
    for wanted in forbidden:
        async with fed.bus(fed.device(MOLE), wanted) as mole, asyncio.timeout(PATIENCE_S):
            with pytest.raises(BusRefused):
                await anext(mole.incoming())
        await fed.told(f"topic '{key(wanted)}' in exchange 'amq.topic'")
    async with fed.bus(fed.device(MOLE), own) as mole, fed.bus(fed.coordinator) as coordinator:
        await coordinator.publish(own, b"end")
        assert await heard(mole) == [b"end"]


async def test_a_device_reaches_no_queue_but_its_own(federation: Federation) -> None:
    fed = federation
    victims = broker_user(fed.id, VICTIM)
    async with fed.bus(fed.device(MOLE, session=victims), topics.down(fed.id, MOLE)) as mole:
        with pytest.raises(BusRefused):
            async with asyncio.timeout(PATIENCE_S):
                await anext(mole.incoming())
    async with channel(fed) as raw:
        with pytest.raises(ChannelAccessRefused):
            await raw.basic_publish(b"denied", exchange="", routing_key=victims)
    own = broker_user(fed.id, MOLE)
    for queue in (victims, own):
        async with channel(fed) as raw:
            with pytest.raises(ChannelAccessRefused):
                await raw.queue_delete(queue)
    async with channel(fed) as raw:
        with pytest.raises(ChannelAccessRefused):
            await raw.queue_purge(victims)
    async with channel(fed) as raw:
        with pytest.raises(ChannelAccessRefused):
            await raw.queue_declare("moles-own", durable=True)
    await fed.told(f"queue '{victims}'")


@asynccontextmanager
async def channel(fed: Federation) -> AsyncIterator[AbstractChannel]:
    """A channel of the mole's, for what no bus would do."""
    who = fed.device(MOLE)
    assert who.username is not None
    url = fed.url.replace("//", f"//{who.username.replace('@', '%40')}:{who.password}@")
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel(publisher_confirms=True)
    finally:
        await connection.close()
