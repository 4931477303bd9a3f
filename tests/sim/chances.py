"""How long devices take: their computing, their links, their days. All drawn from the seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

DAY_S: Final = 1_200.0  # of simulated devices: a night is in every run, and is no idle stretch
TAIL_MAX: Final = 65.0  # the slowest answers take so many times the usual ones (heavy tail)
HELD_S: Final = 0.05  # how long messages of a usual link are on their way

Draw = Callable[[float], float]
"""A time in seconds, at a moment in seconds."""


def compute(rng: random.Random, usual_s: float) -> tuple[str, Draw]:
    """The model of one device's training times, and its name."""
    kind = rng.choice(("lognormal", "half-normal", "heavy tail", "day and night"))
    pace_s = usual_s * rng.lognormvariate(0.0, 0.5)
    phase_s = rng.uniform(0.0, DAY_S)

    def draw(now_s: float) -> float:
        match kind:
            case "lognormal":
                return pace_s * rng.lognormvariate(0.0, 0.6)
            case "half-normal":
                return pace_s * (0.5 + abs(rng.gauss(0.0, 0.75)))
            case "heavy tail":
                return pace_s * min(rng.paretovariate(1.1), TAIL_MAX)
        into_day_s = (now_s + phase_s) % DAY_S
        sleeps_s = max(DAY_S / 2 - into_day_s, 0.0)  # the first half of its day is night
        return sleeps_s + pace_s * rng.lognormvariate(0.0, 0.3)

    return kind, draw


def link(rng: random.Random) -> Draw:
    """One device's way to the broker: how long a message takes on it, one way."""
    kind = rng.choice(("lognormal", "half-normal", "heavy tail"))
    usual_s = HELD_S * rng.lognormvariate(0.0, 0.7)

    def draw(now_s: float) -> float:
        match kind:
            case "lognormal":
                return usual_s * rng.lognormvariate(0.0, 0.5)
            case "half-normal":
                return usual_s * abs(rng.gauss(0.0, 1.25))
        return usual_s * min(1.0 / math.sqrt(max(rng.random(), 1e-9)), TAIL_MAX)

    return draw
