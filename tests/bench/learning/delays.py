"""How long devices train, in units: a usual training takes about one. All drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SLOWER: Final = 65.0  # heavy tail: so many times slower than the others
SLOW_SHARE: Final = 0.1  # of the devices

Draw = Callable[[], float]


@dataclass(frozen=True)
class Pace:
    """``draws`` has a device's next training time, in units; ``slow`` are the numbers of the slowest tenth,
    none where all are alike."""

    draws: list[Draw]
    slow: list[int]


def half_normal(devices: int, rng: random.Random) -> Pace:
    """All alike: |N(0, 1)|, each time anew, as Nguyen et al. 2022 have it ("Federated learning with buffered
    asynchronous aggregation")."""
    return Pace([_half_normal(rng, 1.0) for _ in range(devices)], [])


def lognormal(devices: int, rng: random.Random) -> Pace:
    """Each device always takes as long as it was drawn to: lognormal, sigma 1."""
    paces = [rng.lognormvariate(0.0, 1.0) for _ in range(devices)]
    order = sorted(range(devices), key=lambda number: paces[number])
    return Pace([_always(pace) for pace in paces], sorted(order[-_slow(devices) :]))


def heavy_tail(devices: int, rng: random.Random) -> Pace:
    """Half-normal, and a tenth of the devices 65 times slower than the others."""
    slow = sorted(rng.sample(range(devices), _slow(devices)))
    return Pace([_half_normal(rng, SLOWER if n in slow else 1.0) for n in range(devices)], slow)


MODELS: Final[dict[str, Callable[[int, random.Random], Pace]]] = {
    "half-normal": half_normal,
    "lognormal": lognormal,
    "heavy tail": heavy_tail,
}


def _slow(devices: int) -> int:
    return max(1, round(SLOW_SHARE * devices))


def _half_normal(rng: random.Random, scale: float) -> Draw:
    return lambda: scale * abs(rng.gauss(0.0, 1.0))


def _always(units: float) -> Draw:
    return lambda: units
