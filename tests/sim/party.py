"""One machine of the simulation, the program on it, and how both fail."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from tests.sim.machine import SimMachine, SimOffload, SimProcess

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Party:
    """One machine and the program on it, started again whenever it dies, as systemd would."""

    name: str
    machine: SimMachine
    program: Callable[[], Coroutine[None, None, None]]
    rng: random.Random
    crash_chance: float  # per operation of the disk
    power_cuts: float = 0.5  # the part of the crashes that loses what was not synced
    crashes: Counter[str] = field(default_factory=Counter)
    away_s_max: float = 20.0  # between two lives
    died: asyncio.Event = field(default_factory=asyncio.Event)

    def arm(self) -> None:
        self.machine.files.on_change = self._disk

    def disarm(self) -> None:
        self.crash_chance = 0.0

    def _disk(self, what: str, path: Path) -> None:
        if self.rng.random() < self.crash_chance:
            self.crashes[what] += 1
            self.machine.halt()
            self.died.set()
            raise OSError(f"{self.name} died at {what} of {path.name}")

    def start(self) -> asyncio.Task[None]:
        """A new life."""
        return asyncio.get_running_loop().create_task(self.program(), name=self.name)

    def excused(self) -> bool:
        """Whether this life may end by itself."""
        return False

    def restart(self) -> None:
        """What the disk kept is all that there is."""
        if self.rng.random() < self.power_cuts:
            self.machine.crash(self.rng)
        else:
            self.machine.restart()

    async def live(self) -> None:
        """Run the program for ever; after each death, with what the disk kept."""
        loop = asyncio.get_running_loop()
        while True:
            self.died.clear()
            life = self.start()
            death = loop.create_task(self.died.wait(), name=f"{self.name} dies")
            try:
                await asyncio.wait([life, death], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (life, death):
                    task.cancel()
                await asyncio.wait([life, death])
            failure = None if life.cancelled() else life.exception()
            if failure is not None and not self.died.is_set() and not self.excused():
                raise failure  # the program failed by itself: that is a defect
            await asyncio.sleep(self.rng.uniform(0.0, self.away_s_max))
            self.restart()


class SlowOffload(SimOffload):
    """Takes a drawn time for each call, so that others act, and crashes come, between order and effect."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        await asyncio.sleep(self._rng.expovariate(1 / 0.02))
        result = function(*args, **kwargs)
        await asyncio.sleep(self._rng.expovariate(1 / 0.02))
        return result


class SlowProcess(SimProcess):
    """Takes a drawn time for each answer."""

    def __init__(self, answer: Callable[[bytes], bytes | None], rng: random.Random) -> None:
        super().__init__(answer)
        self._rng = rng

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(self._rng.lognormvariate(1.0, 1.0))
        await super().write(data)
