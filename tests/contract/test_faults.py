"""The fault injector: seeded, on a virtual clock, and harmless when its plan is empty."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from broker.bus import BusRefused, Connected, Credentials, Delivery
from broker.faults import FaultPlan, Faults, FaultyBus
from broker.memory import MemoryBroker, MemoryBus
from tests.sim.virtual_loop import VirtualDeadlock, run

COUNT = 200
SETTLE_S = 60.0


def through(plan: FaultPlan, *, seed: int = 7) -> list[tuple[float, int]]:
    """Numbers sent through one faulty bus and back to its own reader: (time of arrival, number)."""
    arrived: list[tuple[float, int]] = []

    async def main() -> None:
        inner = MemoryBus(MemoryBroker(), Credentials("a"), ["t"])
        async with FaultyBus(inner, random.Random(seed), plan) as bus, asyncio.TaskGroup() as group:

            async def read() -> None:
                async for item in bus.incoming():
                    if not isinstance(item, Connected):
                        arrived.append((asyncio.get_running_loop().time(), int(item.payload)))
                        await item.ack()

            reader = group.create_task(read())
            for number in range(COUNT):
                await bus.publish("t", str(number).encode())
            await asyncio.sleep(SETTLE_S)
            reader.cancel()

    run(main)
    return arrived


def numbers(arrived: list[tuple[float, int]]) -> list[int]:
    return [number for _, number in arrived]


def test_without_faults_everything_arrives_once_in_order_and_at_once() -> None:
    assert through(FaultPlan()) == [(0.0, number) for number in range(COUNT)]


@pytest.mark.parametrize("direction", ["sending", "receiving"])
def test_drops_lose_about_the_given_share_and_tell_nobody(direction: str) -> None:
    arrived = numbers(through(FaultPlan(**{direction: Faults(drop=0.3)})))
    assert arrived == sorted(set(arrived))
    assert 0.5 * COUNT < len(arrived) < 0.9 * COUNT


@pytest.mark.parametrize("direction", ["sending", "receiving"])
def test_duplicates_come_twice_and_nothing_is_lost(direction: str) -> None:
    copies = Counter(numbers(through(FaultPlan(**{direction: Faults(duplicate=0.3)}))))
    assert set(copies) == set(range(COUNT))
    assert set(copies.values()) == {1, 2}


@pytest.mark.parametrize("direction", ["sending", "receiving"])
def test_messages_held_back_are_overtaken_but_arrive(direction: str) -> None:
    plan = FaultPlan(**{direction: Faults(hold=0.3, hold_s_max=5.0), "sending": Faults(delay_s_max=0.1)})
    if direction == "sending":
        plan = FaultPlan(sending=Faults(hold=0.3, hold_s_max=5.0, delay_s_max=0.1))
    arrived = numbers(through(plan))
    assert arrived != sorted(arrived)
    assert sorted(arrived) == list(range(COUNT))


def test_delayed_arrivals_keep_their_order() -> None:
    arrived = through(FaultPlan(receiving=Faults(delay_s_max=2.0)))
    assert numbers(arrived) == list(range(COUNT))
    assert arrived[-1][0] > 0.0


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    mixed = Faults(drop=0.1, duplicate=0.1, hold=0.2, delay_s_max=0.5)
    plan = FaultPlan(sending=mixed, receiving=mixed)
    assert through(plan, seed=1) == through(plan, seed=1)
    assert through(plan, seed=1) != through(plan, seed=2)


def test_a_partition_stops_both_directions_until_it_heals() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        async with (
            FaultyBus(MemoryBus(broker, Credentials("a"), ["t"]), random.Random(1), FaultPlan()) as bus,
            MemoryBus(broker, Credentials("b"), ["u"]) as other,
        ):
            ours, theirs = bus.incoming(), other.incoming()
            assert await anext(ours) == Connected(1)
            assert await anext(theirs) == Connected(1)
            bus.partition()
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(bus.publish("u", b"out"))
                await other.publish("t", b"in")
                receiving = group.create_task(next_payload(ours))
                await asyncio.sleep(3600)
                assert not sending.done()
                assert not receiving.done()
                bus.heal()
            assert receiving.result() == b"in"
            assert await next_payload(theirs) == b"out"

    run(main)


def test_a_message_lost_on_arrival_does_not_block_the_window() -> None:
    async def main() -> None:
        broker = MemoryBroker(window_deliveries=2)
        plan = FaultPlan(receiving=Faults(drop=1.0))
        async with FaultyBus(MemoryBus(broker, Credentials("a"), ["t"]), random.Random(1), plan) as bus:
            for _ in range(10):
                await bus.publish("t", b"x")
            await asyncio.sleep(1)
            assert broker.queued("a") == 0

    run(main)


def test_a_refusal_passes_through_as_often_as_it_is_asked_for() -> None:
    async def main() -> None:
        inner = MemoryBus(MemoryBroker(passwords={}), Credentials("a", "a", "wrong"), ["t"])
        async with FaultyBus(inner, random.Random(1), FaultPlan()) as bus:
            for _ in range(2):
                with pytest.raises(BusRefused):
                    await anext(bus.incoming())
            with pytest.raises(BusRefused):
                await bus.publish("t", b"x")

    run(main)


def test_a_cut_memory_client_waits_without_spinning_and_a_taken_over_one_for_ever() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        async with (
            MemoryBus(broker, Credentials("a"), ["t"]) as old,
            MemoryBus(broker, Credentials("a"), ["t"]) as new,
        ):
            assert await anext(new.incoming()) == Connected(1)
            await new.publish("t", b"x")
            assert await next_payload(new.incoming()) == b"x"
            await anext(old.incoming())

    # Nothing will ever happen: the virtual clock sees it, which a busy loop would hide.
    with pytest.raises(VirtualDeadlock):
        run(main)


async def next_payload(incoming: object) -> bytes:
    assert hasattr(incoming, "__anext__")
    item: Delivery = await incoming.__anext__()
    return item.payload
