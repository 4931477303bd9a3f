"""When what was recorded is due, and where it is played."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from broker.bus import Bus, Credentials
from broker.ports import Clock

Dial = Callable[[Credentials, Sequence[str]], Bus]
"""Makes a bus to the broker of those under test: credentials, subscriptions."""


class Pace:
    """``speed`` times as fast as it was recorded, or at once if that is infinite. Behind something late, gaps
    are shorter until it is made up for."""

    def __init__(self, clock: Clock, speed: float) -> None:
        self._clock = clock
        self._speed = speed
        self._began: tuple[float, float] | None = None

    def __str__(self) -> str:
        return "max" if math.isinf(self._speed) else f"{self._speed:g}"

    async def until(self, run_s: float) -> None:
        """Wait until the moment ``run_s`` of the recording; the first one is now."""
        now_s = self._clock.monotonic_s()
        if self._began is None:
            self._began = run_s, now_s
        then_s, began_s = self._began
        await asyncio.sleep(max(began_s + (run_s - then_s) / self._speed - now_s, 0.0))
