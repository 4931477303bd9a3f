"""What `broker.bus` promises, over every transport. What only some promise: `test_capabilities`."""

from __future__ import annotations

import asyncio

import pytest

from broker.bus import BusRefused, Connected
from tests.contract.capabilities import WINDOW
from tests.contract.transports import Transport, numbered


async def test_a_wildcard_takes_in_one_level_and_nothing_else(transport: Transport) -> None:
    root = transport.root
    async with transport.join("reader", [f"{root}/up/+"]) as reader, transport.join("a") as a:
        await reader.connected()
        for topic in ("down/a", "up", "up/a/deeper"):
            await a.publish_in_vain(f"{root}/{topic}")
        await a.publish(f"{root}/up/a", b"x")
        assert [d.topic for d in await reader.take(1)] == [f"{root}/up/a"]


async def test_a_message_reaches_every_subscriber_and_its_own_sender(transport: Transport) -> None:
    topic = f"{transport.root}/all"
    async with transport.join("a", [topic]) as a, transport.join("b", [topic]) as b:
        await a.connected()
        await b.connected()
        await a.publish(topic, b"x")
        assert [d.payload for d in await a.take(1) + await b.take(1)] == [b"x", b"x"]


async def test_a_megabyte_and_an_empty_message_arrive_whole(transport: Transport) -> None:
    topic = f"{transport.root}/up/a"
    large = bytes(range(256)) * 4096
    async with transport.join("reader", [topic]) as reader, transport.join("a") as a:
        await reader.connected()
        await a.publish(topic, large)
        await a.publish(topic, b"")
        assert [d.payload for d in await reader.take(2)] == [large, b""]


async def test_a_reader_that_does_not_acknowledge_stops_at_the_window_and_loses_nothing(
    transport: Transport,
) -> None:
    topic = f"{transport.root}/up/a"
    sent = numbered(3 * WINDOW)
    async with (
        transport.join("reader", [topic]) as reader,
        transport.join("witness", [topic]) as witness,
        transport.join("a") as a,
        asyncio.TaskGroup() as group,
    ):
        await reader.connected()
        await witness.connected()
        for payload in sent:
            await a.publish(topic, payload)
        unacked = await reader.take(WINDOW, ack=False)
        more = group.create_task(reader.take(2 * WINDOW))
        # Everything went through the broker, so it is not for want of messages that nothing comes.
        await witness.take(len(sent))
        assert not more.done()
        for delivery in unacked[1:]:
            await delivery.ack()
        await a.publish_in_vain(f"{transport.root}/elsewhere")
        assert not more.done(), "acknowledgements count in the order of receipt"
        await unacked[0].ack()
        rest = await more
    assert [d.payload for d in unacked + rest] == sent


async def test_acknowledging_twice_counts_once(transport: Transport) -> None:
    topic = f"{transport.root}/up/a"
    async with transport.join("reader", [topic]) as reader, transport.join("a") as a:
        await reader.connected()
        for payload in numbered(2 * WINDOW):
            await a.publish(topic, payload)
        first, *others = await reader.take(WINDOW, ack=False)
        await first.ack()
        await first.ack()
        assert [d.payload for d in await reader.take(1, ack=False)] == [str(WINDOW).encode()]
        for delivery in others:
            await delivery.ack()


async def test_what_is_sent_while_the_reader_returns_does_not_overtake_what_waits_for_it(
    transport: Transport,
) -> None:
    topic = f"{transport.root}/up/a"
    async with transport.join("reader", [topic]) as reader:
        await reader.connected()
    async with transport.join("a") as a, asyncio.TaskGroup() as group:
        sending = [group.create_task(a.publish(topic, payload)) for payload in numbered(1500)]
        await sending[500]
        async with transport.join("reader", [topic]) as reader:
            assert [d.payload for d in await reader.take(1500)] == numbered(1500)


async def test_each_connection_is_announced_with_its_number(transport: Transport) -> None:
    topic = f"{transport.root}/down/a"
    async with transport.join("reader", [topic]) as reader:
        assert await reader.connected() == Connected(1)
        await transport.cut("reader")
        transport.restore("reader")
        assert await reader.connected() == Connected(2)
        await reader.publish(topic, b"after")
        assert [d.payload for d in await reader.take(1)] == [b"after"]


async def test_publishing_while_the_connection_is_broken_waits_and_then_goes(transport: Transport) -> None:
    topic = f"{transport.root}/up/a"
    async with transport.join("reader", [topic]) as reader, transport.join("a") as a:
        await reader.connected()
        await a.connected()
        await transport.cut("a")
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(a.publish(topic, b"late"))
            await reader.publish(topic, b"early")
            assert [d.payload for d in await reader.take(1)] == [b"early"]
            assert not publishing.done()
            transport.restore("a")
        assert [d.payload for d in await reader.take(1)] == [b"late"]


async def test_a_cancelled_reader_loses_nothing(transport: Transport) -> None:
    topic = f"{transport.root}/up/a"
    async with transport.join("reader", [topic]) as reader, transport.join("a") as a:
        await reader.connected()
        waiting = asyncio.Event()

        async def wait() -> None:
            waiting.set()
            await anext(reader.incoming)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(wait())
            await waiting.wait()
            await asyncio.sleep(0)
            task.cancel()
        reader.incoming = reader.bus.incoming()
        await a.publish(topic, b"x")
        assert [d.payload for d in await reader.take(1)] == [b"x"]


async def test_a_wrong_password_is_refused_to_reader_and_sender(transport: Transport) -> None:
    async with transport.join("a", password="wrong") as a:
        with pytest.raises(BusRefused, match="refused"):
            await a.connected()
        with pytest.raises(BusRefused, match="refused"):
            await a.publish("x", b"x")


async def test_leaving_a_bus_leaves_no_task_behind_and_tells_who_still_uses_it(transport: Transport) -> None:
    async with transport.join("warm-up"):
        pass
    before = asyncio.all_tasks()
    async with transport.join("a", [f"{transport.root}/x"]) as a:
        await a.connected()
    assert asyncio.all_tasks() - before == set()
    with pytest.raises(Exception, match="outside `async with`"):
        await a.publish("x", b"x")
