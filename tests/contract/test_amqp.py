"""What holds over AMQP beyond the common suite."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator

import pytest
from aiormq.abc import ChannelFrame

from broker import amqp_connection, amqp_frames
from broker.bus import Bus, BusError, BusLost, BusRefused, BusUndelivered, Connected
from tests.brokers import RabbitMQ
from tests.contract.amqp_site import Site, alarm, publish_until_refused
from tests.contract.problems import problem
from tests.contract.proxy import Proxy
from tests.contract.transports import PATIENCE_S, Peer

pytestmark = pytest.mark.live


@pytest.fixture
def site(rabbitmq: RabbitMQ) -> Site:
    return Site(rabbitmq)


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


async def test_a_message_that_nobody_listens_to_is_not_delivered_and_says_so(site: Site) -> None:
    async with site.bus() as bus:
        with pytest.raises(BusUndelivered, match=f"nobody listens to {site.topic}"):
            await bus.publish(site.topic, b"x")


async def test_a_denied_topic_is_named_and_the_connection_goes_on(site: Site) -> None:
    own = site.topic.replace("/", "\\.")
    site.grant(topics=(f"^{own}$", ".*"))
    async with site.bus(site.topic) as bus:
        peer = Peer(bus)
        await peer.connected()
        for _ in range(3):
            with pytest.raises(
                BusUndelivered, match=f"user '{site.name}' may not publish to fedbus/x"
            ) as caught:
                await bus.publish("fedbus/x", b"x")
            assert not isinstance(caught.value, BusLost)
            await bus.publish(site.topic, b"y")
        taken = [await anext(peer.incoming) for _ in range(3)]
    assert not any(isinstance(item, Connected) for item in taken)


async def test_what_is_on_its_way_beside_a_denied_message_arrives_or_says_that_nobody_knows(
    site: Site,
) -> None:
    own = site.topic.replace("/", "\\.")
    site.grant(topics=(f"^{own}$", ".*"))
    fates: dict[bytes, BusError | None] = {}

    async def send(bus: Bus, topic: str, payload: bytes) -> None:
        try:
            await bus.publish(topic, payload)
        except BusUndelivered as error:
            fates[payload] = error
        else:
            fates[payload] = None

    async with site.bus(site.topic) as bus:
        peer = Peer(bus)
        await peer.connected()
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                topic = "fedbus/x" if number == 50 else site.topic
                group.create_task(send(bus, topic, str(number).encode()))
        await bus.publish(site.topic, b"last")
        arrived = set()
        while b"last" not in arrived:
            arrived.add((await peer.take(1))[0].payload)
    assert b"50" not in arrived
    for payload, error in fates.items():
        assert payload in arrived or isinstance(error, BusUndelivered)
        if payload != b"50":
            assert error is None or isinstance(error, BusLost)


async def test_a_message_that_comes_while_a_channel_ends_goes_out_on_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = asyncio.Event()

    class Watched(amqp_frames.Outgoing):
        def _put(self, item: ChannelFrame) -> None:
            super()._put(item)
            if item.payload[7:11] == amqp_frames.CHANNEL_CLOSE_OK:
                ending.set()

    monkeypatch.setattr(amqp_connection, "Outgoing", Watched)
    own = site.topic.replace("/", "\\.")
    site.grant(topics=(f"^{own}$", ".*"))

    async def send_late(bus: Bus) -> None:
        await ending.wait()  # and not until aiormq has closed its channel, which takes it some turns
        await bus.publish(site.topic, b"late")

    async with site.bus(site.topic) as bus, asyncio.TaskGroup() as group:
        peer = Peer(bus)
        await peer.connected()
        group.create_task(send_late(bus))
        with pytest.raises(BusUndelivered, match="may not publish"):
            await bus.publish("fedbus/x", b"x")
        assert [d.payload for d in await peer.take(1)] == [b"late"]


async def test_a_full_queue_refuses_and_takes_again_once_it_was_read(site: Site) -> None:
    site.delete()
    site.declare(**{"x-max-length-bytes": 1000})
    async with site.bus(site.topic) as bus:
        await Peer(bus).connected()
    async with site.bus() as bus:
        accepted, error = await publish_until_refused(bus, site.topic)
    assert f"a queue for {site.topic} is full" in str(error)
    async with site.bus(site.topic) as bus:
        await Peer(bus).take(accepted)
        await bus.publish(site.topic, b"again")


async def test_while_rabbitmq_is_out_of_memory_acknowledgements_pass_and_publishing_waits(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with site.bus(site.topic) as bus:
        peer = Peer(bus)
        await peer.connected()
        for number in range(100):
            await bus.publish(site.topic, str(number).encode())
        with alarm(site.node):
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(bus.publish(site.topic, b"late"))
                told = await problem(bus, "RabbitMQ blocks publishers: memory or disk alarm")
                # More than the window: the broker has taken acknowledgements since.
                assert len(await peer.take(100)) == 100
                assert not waiting.done()
                async with site.bus() as other:
                    hopeless = group.create_task(publish_until_refused(other, site.topic))
                    await problem(other, "blocks publishers")
                assert isinstance((await hopeless)[1], BusLost)
                await asyncio.get_running_loop().run_in_executor(
                    None, site.node.ctl, "set_vm_memory_high_watermark", "absolute", "4GB"
                )
        await problem(bus, "")
        assert [d.payload for d in await peer.take(1)] == [b"late"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings.count(told) == 2, "one line for each connection that is blocked"


async def test_a_queue_that_is_deleted_under_its_reader_is_noticed(site: Site) -> None:
    async with site.bus(site.topic) as bus:
        peer = Peer(bus)
        await peer.connected()
        site.delete()
        with pytest.raises(BusRefused, match="is missing"):
            await peer.connected()


async def test_a_delivery_that_waits_too_long_breaks_the_connection_and_comes_again(site: Site) -> None:
    short = "application:set_env(rabbit, consumer_timeout, 200), application:set_env(rabbit, T, 200)."
    usual = "application:set_env(rabbit, consumer_timeout, 1800000), application:set_env(rabbit, T, 60000)."
    site.node.ctl("eval", short.replace("T", "channel_tick_interval"))
    try:
        async with site.bus(site.topic) as bus:
            peer = Peer(bus)
            await peer.connected()
            await bus.publish(site.topic, b"x")
            (late,) = await peer.take(1, ack=False)
            await problem(bus, "not acknowledged within the broker's consumer_timeout")
            await late.ack()
            assert [d.payload for d in await peer.take(1)] == [b"x"]
    finally:
        site.node.ctl("eval", usual.replace("T", "channel_tick_interval"))


async def test_a_session_that_is_not_durable_needs_no_queue_and_leaves_none(site: Site) -> None:
    site.delete()
    site.grant(configure=f"^{site.name}$")
    async with site.bus(site.topic, durable=False) as bus:
        peer = Peer(bus)
        await peer.connected()
        await bus.publish(site.topic, b"x")
        assert [d.payload for d in await peer.take(1)] == [b"x"]
    async with site.bus() as bus:
        _, error = await publish_until_refused(bus, site.topic)
    assert f"nobody listens to {site.topic}" in str(error)


async def test_leaving_at_any_moment_leaves_nothing_behind(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()
    caplog.clear()  # of what earlier tests left
    async with Proxy(site.node.amqp) as proxy:
        async with site.bus(site.topic, port=proxy.port) as bus:
            await Peer(bus).connected()  # from here on somebody listens: the queue is bound
        await proxy.idle()
        before = asyncio.all_tasks()
        for ticks in (0, 1, 2, 5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 300):
            async with site.bus(site.topic, port=proxy.port) as bus, asyncio.TaskGroup() as group:
                sending = group.create_task(bus.publish(site.topic, bytes(1 << 20)))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                sending.cancel()
            assert [task for task in asyncio.all_tasks() - before if "Proxy" not in repr(task)] == []
            await proxy.idle()
        async with site.bus(site.topic, port=proxy.port) as bus:
            await Peer(bus).connected()
            proxy.stall()
        proxy.restore()
        await proxy.idle()
        assert asyncio.all_tasks() == before
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == [], "failures unseen"
