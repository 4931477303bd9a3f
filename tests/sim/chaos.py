"""Seeded order of what is ready, and death at any step of any task."""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter, deque
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from pathlib import Path

from schemas.ids import COORDINATOR
from tests.sim.party import Party

PARTY: ContextVar[Mortal | None] = ContextVar("party", default=None)
GROWING = frozenset({"append", "write_at", "open", "make_dir"})
FAILING = frozenset({"append", "write_at", "sync"})
TRACE_MAX = 2_000


@dataclass
class Record:
    """What befell a run: how often each kind of fault came, and the last of them with their times."""

    counts: Counter[str] = field(default_factory=Counter)
    trace: deque[str] = field(default_factory=lambda: deque(maxlen=TRACE_MAX))
    in_round: Callable[[], bool] = lambda: False

    def note(self, kind: str, about: str) -> None:
        self.counts[kind] += 1
        self.trace.append(f"{asyncio.get_running_loop().time():10.3f} s  {kind}: {about}")


@dataclass
class Mortal(Party):
    """A party that can also die between two operations of its disk, whose disk may fail or be full."""

    record: Record = field(default_factory=Record)
    failure_chance: float = 0.0  # per write or sync: the disk fails, and the program ends by itself
    full: bool = False
    hurt: bool = False
    armed: bool = False

    def arm(self) -> None:
        self.armed = True
        super().arm()

    def disarm(self) -> None:
        super().disarm()
        self.armed, self.failure_chance = False, 0.0

    def die(self, where: str) -> None:
        """A killed process, or one whose machine lost power: which, is drawn when it starts again."""
        self.crashes[where] += 1
        if self.record.in_round():
            self.record.counts["crash in a round"] += 1
        self.record.note("crash", f"{self.name} at {where}")
        self.machine.halt()
        self.died.set()

    def _disk(self, what: str, path: Path) -> None:
        if self.full and what in GROWING:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        if what in FAILING and self.rng.random() < self.failure_chance:
            self.hurt = True
            self.record.note("failed write", f"{self.name}, {what} of {path.name}")
            raise OSError(errno.EIO, "Input/output error", str(path))
        if self.rng.random() < self.crash_chance:
            self.die(f"{what} of {path.name}")
            raise OSError(f"{self.name} died at {what} of {path.name}")

    def start(self) -> asyncio.Task[None]:
        self.hurt = False
        context = copy_context()
        context.run(PARTY.set, self)
        return asyncio.get_running_loop().create_task(self.program(), name=self.name, context=context)

    def excused(self) -> bool:
        return self.hurt

    def restart(self) -> None:
        torn = self.machine.files.torn
        super().restart()
        if self.machine.files.torn > torn:
            self.record.note("torn write", self.name)


class Steps:
    """Shuffles what is ready to run, and now and then kills the party whose turn would be next. Every other
    time that is the coordinator."""

    def __init__(self, rng: random.Random, apart: float) -> None:
        self._rng = rng
        self._apart = apart
        self._left = rng.expovariate(1 / apart)
        self._coordinator = rng.random() < 0.5
        self.quiet = True

    def __call__(self, ready: deque[asyncio.Handle]) -> None:
        count = len(ready)
        if count > 1:
            draw = self._rng.random
            for last in range(count - 1, 0, -1):
                other = int(draw() * (last + 1))
                ready[last], ready[other] = ready[other], ready[last]
        if self.quiet:
            return
        self._left -= count
        if self._left <= 0:
            self._kill(ready)

    def _kill(self, ready: deque[asyncio.Handle]) -> None:
        for handle in ready:
            party = handle._context.get(PARTY)  # type: ignore[attr-defined]  # no public way to it
            if party is None or not party.armed or party.died.is_set():
                continue
            if self._coordinator and party.name != COORDINATOR:
                continue
            party.die("an await")
            self._left = self._rng.expovariate(1 / self._apart)
            self._coordinator = self._rng.random() < 0.5
            return
