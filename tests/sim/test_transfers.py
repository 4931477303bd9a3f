"""Seeded federations whose connections break and whose programs are killed in the middle of transfers: of an
update no chunk that had arrived is sent again, and hardly any of a model."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import TracebackType
from typing import Self

import pytest

from broker.bus import Bus, BusLost
from broker.faults import FaultPlan, Faults
from schemas.ids import COORDINATOR
from tests.sim.crypto import seeded
from tests.sim.federation import World, run
from tests.watch import Watch, WatchedBus

SEEDS = 20
CHUNKS = 24
COUNT = CHUNKS * 16 * 1024  # parameters


class Lines(World):
    """Slow lines that keep their order, and break: whoever sends may then not know whether it was sent."""

    power_cuts = 0.0  # a disk that forgets chunks has them sent again, and rightly so

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.count = COUNT
        self.plan = FaultPlan(Faults(delay_s_max=0.5))
        self.watch = Watch()

    def bus(self, name: str, topic: str) -> Bus:
        lossy = DoubtfulBus(super().bus(name, topic), random.Random(self.rng.random()), self)
        return WatchedBus(lossy, self.watch)

    async def weather(self) -> None:
        names = [COORDINATOR, *self.devices]
        while not self.quiet:
            await asyncio.sleep(self.rng.expovariate(1 / 5))
            name = self.rng.choice(names)
            self.broker.disconnect(name)
            await asyncio.sleep(self.rng.expovariate(1 / 10))
            self.broker.restore(name)


class DoubtfulBus:
    """A bus that now and then loses its connection while something is being sent."""

    def __init__(self, bus: Bus, rng: random.Random, world: Lines) -> None:
        self._bus = bus
        self._rng = rng
        self._world = world
        self.incoming = bus.incoming

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._bus.__aexit__(exc_type, exc, traceback)

    @property
    def problem(self) -> str:
        return self._bus.problem

    async def publish(self, topic: str, payload: bytes) -> None:
        breaks, arrives = self._rng.random() < 0.05, self._rng.random() < 0.5
        if arrives or not breaks:
            await self._bus.publish(topic, payload)
        if breaks and not self._world.quiet:
            raise BusLost("the connection broke")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_chunk_that_had_arrived_is_sent_again(seed: int) -> None:
    worlds: list[Lines] = []

    def make(seed: int) -> Lines:
        worlds.append(Lines(seed))
        return worlds[0]

    with seeded(seed):
        outcome = run(seed, make)
    (world,) = worlds
    in_vain = Counter(way for way, *_ in world.watch.sent_in_vain)
    assert in_vain["up"] == 0
    # What a device lacks is a guess from its silence; a chunk is what a wrong guess costs.
    assert in_vain["down"] <= 0.1 * world.watch.came("down")
    assert outcome.crashes["coordinator"] + outcome.crashes["d"] > 0
    assert max(world.watch.count("up")) > 1, "some were lost on their way"
