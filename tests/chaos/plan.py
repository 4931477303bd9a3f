"""What is done to whom: drawn from a seed, up to a count of each kind or for a time."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What is done."""

    COORDINATOR = "coordinator"  # kill -9
    AGENT = "agent"  # kill -9, and its worker with it
    WORKER = "worker"  # kill -9
    BROKER = "broker"  # kill -9
    STOP = "stop"  # SIGSTOP of agent, coordinator or broker, until SIGCONT beyond the keep-alive
    DISK = "disk"  # no room for the coordinator or a device, then room again
    CUT = "cut"  # a device's line


KILLS: Final = (Kind.COORDINATOR, Kind.AGENT, Kind.WORKER, Kind.BROKER)
SHARES: Final = {
    Kind.COORDINATOR: 5, Kind.AGENT: 5, Kind.WORKER: 5, Kind.BROKER: 3,
    Kind.STOP: 1, Kind.DISK: 2, Kind.CUT: 3,
}  # fmt: skip
LASTS_S: Final = {Kind.STOP: 85.0, Kind.DISK: 20.0, Kind.CUT: 10.0, Kind.BROKER: 15.0}
"""About; what takes longer than the time that is left is not begun."""
MISSES_MAX: Final = 5
"""For each kind, beside as many as are wanted."""


class Plan:
    """`next` is asked until it has nothing more; `done` tells what came of it: what missed is made again."""

    def __init__(
        self, draw: random.Random, counts: Mapping[Kind, int], duration_s: float, possible: frozenset[Kind]
    ) -> None:
        self.hit: Counter[Kind] = Counter()
        self.made: Counter[Kind] = Counter()
        self._draw = draw
        self._counts = {kind: count for kind, count in counts.items() if count}
        self._duration_s = duration_s
        self._possible = possible
        self._end_s = 0.0

    def start(self) -> None:
        """The time runs from now on."""
        self._end_s = time.monotonic() + self._duration_s

    def next(self) -> Kind | None:
        """Raises RuntimeError when too many have missed."""
        if self._counts:
            bag = [kind for kind, count in self._counts.items() for _ in range(count - self.hit[kind])]
            for kind in bag:
                missed = self.made[kind] - self.hit[kind]
                if missed > MISSES_MAX + self._counts[kind]:
                    raise RuntimeError(f"{missed} of {self.made[kind]} faults of kind {kind} missed")
            return self._draw.choice(bag) if bag else None
        left_s = self._end_s - time.monotonic()
        kinds = [kind for kind in SHARES if kind in self._possible and LASTS_S.get(kind, 0.0) < left_s]
        if left_s <= 0 or not kinds:
            return None
        return self._draw.choices(kinds, [SHARES[kind] for kind in kinds])[0]

    def done(self, kind: Kind, *, hit: bool) -> None:
        """It was made, and hit an open round with an update in flight, or did not."""
        self.made[kind] += 1
        self.hit[kind] += hit
