"""The same over AMQP: a device with a queue of its own tries every other topic and queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiormq
import pytest
from aiormq import spec
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused

from broker.amqp import EXCHANGE
from broker.bus import Bus, BusRefused, BusUndelivered, Connected, Credentials
from broker.connect import connect
from broker.system import system_ports
from schemas import topics
from schemas.enrolment import Token
from schemas.ids import DeviceId, broker_user
from tests.brokers import RabbitMQ
from tests.live.installation import Installation
from tests.live.plant import INLINE, Plant, rabbitmq_door
from tests.live.test_bad_input_company import GARBAGE

pytestmark = [pytest.mark.live, pytest.mark.slow]

MOLE, VICTIM = DeviceId("mole"), DeviceId("victim")
PATIENCE_S = 20.0


class Federation:
    """Its parties, each as its own user."""

    def __init__(self, base: Path, node: RabbitMQ) -> None:
        self.url = f"amqp://127.0.0.1:{node.amqp}"
        self.log = node.log
        self.site = site = Installation(base / "fed", self.url)
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

    @asynccontextmanager
    async def told_of(self, what: str) -> AsyncIterator[None]:
        """What the mole tries in here is read by the operator, in lines that were not there before."""
        began = self.log.stat().st_size
        yield
        user = broker_user(self.id, MOLE)
        line = f"access to {what} in vhost '/' refused for user '{user}'"
        async with asyncio.timeout(PATIENCE_S):
            while line not in self.since(began):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)

    def since(self, began: int) -> str:
        """The log from there on."""
        return self.log.read_bytes()[began:].decode(errors="replace")


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
            async with fed.told_of(f"topic '{key(topic)}' in exchange 'amq.topic'"):
                with pytest.raises(BusUndelivered, match=r"may not|not let|refused"):
                    await mole.publish(topic, b"denied")
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
        async with (
            fed.told_of(f"topic '{key(wanted)}' in exchange 'amq.topic'"),
            fed.bus(fed.device(MOLE), wanted) as mole,
            asyncio.timeout(PATIENCE_S),
        ):
            with pytest.raises(BusRefused):
                await anext(mole.incoming())
    async with fed.bus(fed.device(MOLE), own) as mole, fed.bus(fed.coordinator) as coordinator:
        await coordinator.publish(own, b"end")
        assert await heard(mole) == [b"end"]


async def test_a_device_reaches_no_queue_but_its_own(federation: Federation) -> None:
    fed = federation
    victims, own = broker_user(fed.id, VICTIM), broker_user(fed.id, MOLE)
    async with (
        fed.told_of(f"queue '{victims}'"),
        fed.bus(fed.device(MOLE, session=victims), topics.down(fed.id, MOLE)) as mole,
    ):
        with pytest.raises(BusRefused):
            async with asyncio.timeout(PATIENCE_S):
                await anext(mole.incoming())
    attempts: list[tuple[str, Callable[[AbstractChannel], Awaitable[object]]]] = [
        (
            "exchange 'amq.default'",
            lambda raw: raw.basic_publish(b"denied", exchange="", routing_key=victims),
        ),
        (f"queue '{victims}'", lambda raw: raw.queue_delete(victims)),
        (f"queue '{own}'", lambda raw: raw.queue_delete(own)),
        (f"queue '{victims}'", lambda raw: raw.queue_purge(victims)),
        (f"queue '{victims}'", lambda raw: raw.basic_get(victims)),
        ("queue 'moles-own'", lambda raw: raw.queue_declare("moles-own", durable=True)),
        ("exchange 'moles-own'", lambda raw: raw.exchange_declare("moles-own")),
    ]
    for what, attempt in attempts:
        async with fed.told_of(what), channel(fed) as raw:
            with pytest.raises(ChannelAccessRefused):
                await attempt(raw)


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_a_carbon_copy_passes_the_rules_unseen_which_is_why_docs_keep_devices_off_amqp(
    federation: Federation, header: str
) -> None:
    """If this no longer holds, docs/rabbitmq.md and docs/brokers.md may promise more."""
    fed = federation
    own, down = topics.up(fed.id, MOLE), topics.down(fed.id, VICTIM)
    began = fed.log.stat().st_size
    async with fed.bus(fed.device(VICTIM), down) as victim, fed.bus(fed.coordinator) as coordinator:
        async with channel(fed) as raw:
            copies = spec.Basic.Properties(headers={header: [key(down)]})
            await raw.basic_publish(b"copy", exchange=EXCHANGE, routing_key=key(own), properties=copies)
        await coordinator.publish(down, b"end")
        assert await heard(victim) == [b"copy", b"end"]
    assert "refused" not in fed.since(began)


async def test_nothing_comes_of_carbon_copies_to_everybody(
    rabbitmq: RabbitMQ, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Plant(tmp_path, rabbitmq_door(rabbitmq, devices="mqtt"), count=INLINE) as plant:
        await plant.train()
        device = plant.residents[0]
        stray = "fedbus/stray"
        rabbitmq.operator.admit("stray", "secret", [stray], [])
        everybody = [plant.up(device), *(plant.down(resident) for resident in plant.residents)]
        copies = spec.Basic.Properties(headers={"BCC": [key(topic) for topic in everybody]})
        connection = await aiormq.connect(f"amqp://stray:secret@127.0.0.1:{rabbitmq.amqp}/")
        try:
            raw = await connection.channel(publisher_confirms=True)
            for payload in GARBAGE:
                await raw.basic_publish(payload, exchange=EXCHANGE, routing_key=key(stray), properties=copies)
        finally:
            await connection.close()
        plant.go_on()
        await plant.finish()
        assert plant.federation.coordinator.intake.dead.counts["malformed"] > 0
    assert any("a message was dropped (malformed)" in line for line in caplog.messages)


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
