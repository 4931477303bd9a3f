"""Each line of the table `CAPABILITIES`: what holds where it is promised, and what really happens elsewhere.

Stopped and killed brokers: `test_restarts`.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from broker.bus import BusError, BusLost, BusUndelivered, Delivery
from tests.contract.capabilities import WINDOW, those
from tests.contract.proxy import Proxy
from tests.contract.transports import PATIENCE_S, Peer, RealTransport, Transport, numbered

ROOT = Path(__file__).parents[2]
READER = """
import asyncio, sys
from broker.bus import Connected, Credentials
from broker.connect import connect
from broker.system import system_ports

async def main(url, user, topic):
    async with connect(url, Credentials(user), [topic], ports=system_ports()) as bus:
        async for item in bus.incoming():
            print("connected" if isinstance(item, Connected) else item.payload.decode(), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
PIECE_BYTES = 16 * 1024
ACKED = 4


@pytest.mark.parametrize("kind", those(lambda c: c.ordered))
async def test_messages_of_each_sender_arrive_in_the_order_sent(transport: Transport) -> None:
    up = f"{transport.root}/up"

    async with (
        transport.join("reader", [f"{up}/+"]) as reader,
        transport.join("a") as a,
        transport.join("b") as b,
    ):
        await reader.connected()
        async with asyncio.TaskGroup() as group:
            for payload in numbered(100):
                group.create_task(a.publish(f"{up}/a", payload))
                group.create_task(b.publish(f"{up}/b", payload))
        taken = await reader.take(200)
    for sender in "ab":
        assert [d.payload for d in taken if d.topic == f"{up}/{sender}"] == numbered(100)


@pytest.mark.parametrize("kind", those(lambda c: c.queues_offline))
async def test_two_thousand_messages_queued_while_offline_all_arrive_in_order(transport: Transport) -> None:
    topic = f"{transport.root}/up/a"
    async with transport.join("reader", [topic]) as reader:
        await reader.connected()
    async with transport.join("a") as a, asyncio.TaskGroup() as group:
        for payload in numbered(2000):
            group.create_task(a.publish(topic, payload))
    async with transport.join("reader", [topic]) as reader:
        taken = await reader.take(2000)
    assert [d.payload for d in taken] == numbered(2000)


async def test_what_was_not_acknowledged_before_a_break_comes_again_in_order_or_never(
    transport: Transport,
) -> None:
    topic = f"{transport.root}/up/a"
    async with transport.join("reader", [topic]) as reader, transport.join("a") as a:
        await reader.connected()
        sent = numbered(WINDOW + 2)
        for payload in sent:
            await a.publish(topic, payload)
        taken = await reader.take(WINDOW, ack=False)
        # The fourth is marked, but stands behind the third: the broker was not told.
        for index in (0, 1, 3):
            await taken[index].ack()
        # The broker knows about the first two: it sent two more, or read what was said after.
        await reader.take(2, ack=False)
        await reader.publish_in_vain(f"{transport.root}/elsewhere")
        await transport.cut("reader")
        await a.publish(topic, b"meanwhile")
        transport.restore("reader")
        expected = [*sent[2:], b"meanwhile"] if transport.capabilities.redelivers else [b"meanwhile"]
        assert [d.payload for d in await reader.take(len(expected))] == expected
        # Of a connection that is gone: nothing happens, in particular no message is skipped.
        await taken[2].ack()
        await a.publish(topic, b"last")
        assert [d.payload for d in await reader.take(1)] == [b"last"]


@pytest.mark.parametrize("kind", those(lambda c: c.outlives_kill is not None))
async def test_what_a_reader_had_not_acknowledged_when_it_was_killed_comes_again_or_never(
    transport: RealTransport,
) -> None:
    topic = f"{transport.root}/up/a"
    transport.invite("reader")
    url = await transport.url("reader")
    reader = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", READER, url, transport.user("reader"), topic),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert reader.stdout is not None
        async with transport.join("a") as a, asyncio.timeout(PATIENCE_S):
            assert await reader.stdout.readline() == b"connected\n"
            for payload in numbered(WINDOW):
                await a.publish(topic, payload)
            assert [(await reader.stdout.readline()).strip() for _ in range(WINDOW)] == numbered(WINDOW)
    finally:
        reader.kill()
        await reader.wait()
    await transport.proxies["reader"].idle()
    async with transport.join("a") as a:
        await a.publish(topic, b"meanwhile")
    async with transport.join("reader", [topic]) as again:
        expected = numbered(WINDOW) if transport.capabilities.redelivers else []
        assert [d.payload for d in await again.take(len(expected) + 1)] == [*expected, b"meanwhile"]


async def test_a_slow_reader_holds_up_nobody_and_misses_nothing(transport: Transport) -> None:
    topic, tick = f"{transport.root}/all", f"{transport.root}/tick"
    sent = numbered(200, PIECE_BYTES)
    async with (
        transport.join("slow", [topic]) as slow,
        transport.join("quick", [topic, tick]) as quick,
        transport.join("a") as a,
    ):
        await slow.connected()
        await quick.connected()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(quick.take(len(sent)))
            for payload in sent:
                await a.publish(topic, payload)
        assert [d.payload for d in reading.result()] == sent
        for payload in sent:
            (delivery,) = await slow.take(1, ack=False)
            assert delivery.payload == payload
            # As long as it thinks, others talk.
            await a.publish(tick, b"")
            await quick.take(1)
            await delivery.ack()


@pytest.mark.parametrize("kind", those(lambda c: c.denied_shows is not None))
async def test_what_one_may_not_publish_never_arrives_and_is_an_error_or_silence(
    transport: Transport,
) -> None:
    up = f"{transport.root}/up"
    async with (
        transport.join("reader", [f"{up}/+"]) as reader,
        transport.join("b", publish=[f"{up}/b"]) as b,
    ):
        await reader.connected()
        await b.publish(f"{up}/b", b"own")
        if transport.capabilities.denied_shows:
            with pytest.raises(BusError):
                await b.publish(f"{up}/a", b"forged")
        else:
            await b.publish(f"{up}/a", b"forged")
        with suppress(BusLost):  # Mosquitto says "taken" and then closes the connection
            await b.publish(f"{up}/b", b"")
        await b.publish(f"{up}/b", b"own again")
        seen = [b""]
        while seen[-1] != b"own again":
            seen += [d.payload for d in await reader.take(1)]
    assert b"own" in seen
    assert b"forged" not in seen


async def test_what_nobody_listens_to_is_an_error_or_silence(transport: Transport) -> None:
    async with transport.join("a") as a:
        if transport.capabilities.unroutable_shows:
            with pytest.raises(BusUndelivered):
                await a.publish(f"{transport.root}/nobody", b"x")
        else:
            await a.publish(f"{transport.root}/nobody", b"x")


async def send_to_idler(transport: RealTransport, reader: Peer, sent: list[bytes]) -> list[Delivery]:
    """All of it, to one who takes the first and acknowledges `ACKED` of them. Returns the rest of these,
    once another reader has everything."""
    topic = f"{transport.root}/all"
    async with transport.join("witness", [topic]) as witness, transport.join("a") as a:
        await reader.connected()
        await witness.connected()
        for payload in sent:
            await a.publish(topic, payload)
        taken = await reader.take(WINDOW, ack=False)
        await witness.take(len(sent))
    for delivery in taken[:ACKED]:
        await delivery.ack()
    return taken[ACKED:]


async def passed(proxy: Proxy, messages: int) -> None:
    """Wait until so many have come from the broker."""
    async with asyncio.timeout(PATIENCE_S):
        while proxy.passed_bytes < messages * PIECE_BYTES:  # noqa: ASYNC110 - the broker's business
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", those(lambda c: c.window and c.outlives_kill is not None))
async def test_the_broker_keeps_to_its_window(transport: RealTransport) -> None:
    topic, sent = f"{transport.root}/all", numbered(64, PIECE_BYTES)
    assert transport.capabilities.window is not None
    allowed = ACKED + transport.capabilities.window
    async with transport.join("reader", [topic]) as reader:
        await send_to_idler(transport, reader, sent)
        await passed(transport.proxies["reader"], allowed)
        await reader.publish_in_vain(f"{transport.root}/elsewhere")
    # Over MQTT the answer, over AMQP the goodbye came behind whatever the broker had sent.
    assert transport.proxies["reader"].passed_bytes < (allowed + 1) * PIECE_BYTES
    async with transport.join("reader", [topic]) as reader:
        assert [d.payload for d in await reader.take(len(sent) - ACKED)] == sent[ACKED:]


@pytest.mark.parametrize("kind", those(lambda c: c.window is None))
async def test_what_a_broker_without_a_window_sends_all_at_once_waits_here(transport: RealTransport) -> None:
    sent = numbered(64, PIECE_BYTES)
    async with transport.join("reader", [f"{transport.root}/all"]) as reader:
        unacked = await send_to_idler(transport, reader, sent)
        await passed(transport.proxies["reader"], len(sent))
        for delivery in unacked:
            await delivery.ack()
        assert [d.payload for d in await reader.take(len(sent) - WINDOW)] == sent[WINDOW:]
