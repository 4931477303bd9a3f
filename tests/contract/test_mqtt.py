"""What the MQTT bus says on the wire, and how its connections end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.bus import Bus, BusLost, BusRefused, Connected, Credentials
from broker.mqtt import mqtt_bus
from broker.system import system_ports
from tests.contract.problems import problem
from tests.contract.transports import PATIENCE_S, Peer
from tests.contract.wire import CONNECT, DISCONNECT, PUBACK, PUBLISH, SUBSCRIBE, ScriptedBroker


@pytest.fixture
async def broker() -> AsyncIterator[ScriptedBroker]:
    async with asyncio.timeout(PATIENCE_S), ScriptedBroker() as scripted:
        yield scripted


def bus_to(broker: ScriptedBroker, *subscriptions: str, durable: bool = True) -> Bus:
    ports = system_ports()
    credentials = Credentials("press-07", "press-07", "right", durable=durable)
    return mqtt_bus(
        "127.0.0.1", broker.port, credentials, subscriptions, clock=ports.clock, entropy=ports.entropy
    )


async def test_the_session_is_persistent_and_of_mqtt_3_1_1(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t"):
        wire = await broker.accept()
        connect = await wire.welcome()
    assert connect[:7] == b"\x00\x04MQTT\x04"
    assert connect[7] & 0x02 == 0, "clean session"
    assert connect[10:] == b"\x00\x08press-07\x00\x08press-07\x00\x05right"


async def test_acknowledgements_reach_the_broker_in_the_order_of_receipt(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t") as bus:
        peer, wire = Peer(bus), await broker.accept()
        await wire.welcome()
        for number in (11, 12, 13):
            wire.deliver(number, b"x")
        deliveries = await peer.take(3, ack=False)
        await deliveries[2].ack()
        await deliveries[1].ack()
        async with asyncio.TaskGroup() as group:
            group.create_task(bus.publish("t", b"x"))
            wire.acknowledge(await wire.read(PUBLISH))  # so nothing was acknowledged before it
        await deliveries[0].ack()
        assert [(await wire.read(PUBACK)).number for _ in range(3)] == [11, 12, 13]


async def test_nothing_is_acknowledged_by_itself_nor_on_another_connection(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t") as bus:
        peer, first = Peer(bus), await broker.accept()
        await first.welcome()
        first.deliver(11, b"read before the break")
        first.deliver(12, b"not read before it")
        (old,) = await peer.take(1, ack=False)
        first.abort()
        second = await broker.accept()
        await second.welcome()
        await old.ack()
        second.deliver(21, b"read before the break")
        leftover, again = await peer.take(2, ack=False)
        assert leftover.payload == b"not read before it", "what arrived is handed out although it broke"
        await leftover.ack()
        await again.ack()
        assert (await second.read(PUBACK)).number == 21


async def test_a_topic_that_is_not_utf_8_is_delivered_as_one_that_nobody_has(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t") as bus:
        peer, wire = Peer(bus), await broker.accept()
        await wire.welcome()
        wire.deliver(11, b"odd", b"t/\xff")
        wire.deliver(12, b"next")
        odd, following = await peer.take(2)
        assert [(await wire.read(PUBACK)).number for _ in range(2)] == [11, 12]
    assert (odd.topic, odd.payload, following.payload) == ("t/\ufffd", b"odd", b"next")


async def test_messages_pass_both_ways_while_the_broker_still_owes_the_grant(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t") as bus:
        peer, wire = Peer(bus), await broker.accept()
        await wire.read(CONNECT)
        wire.greet()
        wire.deliver(11, b"queued")
        (delivery,) = await peer.take(1, ack=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(bus.publish("t", b"answer"))
            asked = await wire.read(SUBSCRIBE)
            wire.acknowledge(await wire.read(PUBLISH))
        await delivery.ack()
        assert (await wire.read(PUBACK)).number == 11
        wire.grant(asked)
        assert await peer.connected() == Connected(1)


async def test_a_publish_without_answer_is_lost_when_the_connection_breaks_and_says_so(
    broker: ScriptedBroker,
) -> None:
    async with bus_to(broker) as bus:
        peer, wire = Peer(bus), await broker.accept()
        await wire.read(CONNECT)
        wire.greet()
        assert await peer.connected() == Connected(1)

        async def publish() -> None:
            with pytest.raises(BusLost, match="broke") as caught:
                await bus.publish("t", b"x")
            assert caught.value.__cause__ is not None

        async with asyncio.TaskGroup() as group:
            group.create_task(publish())
            await wire.read(PUBLISH)
            wire.abort()
        again = await broker.accept()
        await again.read(CONNECT)
        again.greet()
        assert await peer.connected() == Connected(2)
    # What was given up on is not sent behind the caller's back: the next thing said is goodbye.
    await again.read(DISCONNECT)


@pytest.mark.parametrize("code", [2, 4, 5])
async def test_a_refusal_names_broker_user_and_remedy(broker: ScriptedBroker, code: int) -> None:
    async with bus_to(broker, "t") as bus:
        wire = await broker.accept()
        await wire.read(CONNECT)
        wire.greet(code)
        with pytest.raises(BusRefused, match=f"127.0.0.1:{broker.port}: user 'press-07'.*check"):
            await Peer(bus).connected()
        with pytest.raises(BusRefused, match="press-07"):
            await bus.publish("t", b"x")


async def test_a_broker_of_another_protocol_version_is_refused(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t") as bus:
        wire = await broker.accept()
        await wire.read(CONNECT)
        wire.greet(1)
        with pytest.raises(BusRefused, match=r"does not speak MQTT 3\.1\.1; use"):
            await Peer(bus).connected()


async def test_a_broker_that_hangs_up_on_a_message_leads_to_the_access_rules(broker: ScriptedBroker) -> None:
    async with bus_to(broker) as bus:
        wire = await broker.accept()
        await wire.read(CONNECT)
        wire.greet()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(publish_in_vain(bus, "fedbus/other"))
            await wire.read(PUBLISH)
            wire.close()
            told = await problem(bus, "the broker closed it before it answered for fedbus/other")
        assert "check the access rules for user 'press-07'" in told
        assert str(sending.result()) == told


async def test_a_broker_that_just_goes_says_nothing_of_access_rules(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t") as bus:
        wire = await broker.accept()
        await wire.welcome()
        await Peer(bus).connected()
        wire.close()
        assert "access" not in await problem(bus, "the connection broke: the broker closed it")


async def publish_in_vain(bus: Bus, topic: str) -> BusLost:
    with pytest.raises(BusLost) as caught:
        await bus.publish(topic, b"x")
    return caught.value


async def test_a_session_that_is_not_durable_is_clean(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t", durable=False):
        wire = await broker.accept()
        connect = await wire.welcome()
    assert connect[7] & 0x02, "clean session"


async def test_a_broker_that_is_not_ready_yet_is_tried_again(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t") as bus:
        unavailable = await broker.accept()
        await unavailable.read(CONNECT)
        unavailable.greet(3)
        for _ in range(3):
            hasty = await broker.accept()
            await hasty.read(CONNECT)
            hasty.abort()
        await (await broker.accept()).welcome()
        assert await Peer(bus).connected() == Connected(1)


async def test_a_connection_that_breaks_right_behind_its_greeting_is_noticed(broker: ScriptedBroker) -> None:
    async with bus_to(broker) as bus:
        hasty = await broker.accept()
        await hasty.read(CONNECT)
        hasty.greet()
        hasty.close()
        patient = await broker.accept()
        await patient.read(CONNECT)
        patient.greet()
        async with asyncio.TaskGroup() as group:
            group.create_task(bus.publish("t", b"x"))
            sent = await patient.read(PUBLISH)
            patient.acknowledge(sent)


async def test_leaving_in_the_middle_of_the_handshake_leaves_nothing_behind(broker: ScriptedBroker) -> None:
    before = asyncio.all_tasks()
    async with bus_to(broker, "t"):
        wire = await broker.accept()
        await wire.read(CONNECT)
    assert asyncio.all_tasks() == before
    await wire.ended()


async def test_an_error_of_the_body_leaves_the_bus_unwrapped(broker: ScriptedBroker) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with bus_to(broker, "t"):
            raise LookupError("mine")


async def test_leaving_says_goodbye(broker: ScriptedBroker) -> None:
    async with bus_to(broker, "t"):
        wire = await broker.accept()
        await wire.welcome()
    await wire.read(DISCONNECT)
