"""What a version scores on many devices: mean, quantiles over devices, and the worst of them. Pure.

Sums are exact (`math.fsum`), so the order of devices and the machine do not matter. What a device tells is
its claim: what is no number, or beyond `CLAIM_MAX`, is no measurement and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.jobs import lower_is_better

CLAIM_MAX: Final = 1e15
"""What a device says it measured, and is larger, is no measurement."""
OWN_SAMPLES: Final = "samples"
"""With this metric a device says on how many samples it measured; without, its update's count."""
OWN_SAMPLES_MAX: Final = 10
"""They count up to so many times the update's: tasks hold out nine of ten parts at most."""
NO_SCORES: Final = frozenset({OWN_SAMPLES, "held_out"})
"""Of what was measured, not how well it went."""
TENTH: Final = 0.1


@dataclass(frozen=True, slots=True)
class Told:
    """What one device told: its metrics, and the samples of its update."""

    metrics: Mapping[str, float | None]
    samples: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one metric over ``devices``: the mean is by samples; the quantiles, and the mean of the worst tenth,
    count each device once."""

    devices: int
    mean: float
    low: float
    median: float
    high: float
    worst: float


def spreads(told: Sequence[Told]) -> dict[str, Spread]:
    """Every metric that was told, by name."""
    names = sorted({name for one in told for name in one.metrics} - NO_SCORES)
    found = {name: spread(told, name) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def spread(told: Sequence[Told], metric: str) -> Spread | None:
    """One metric; None if no device measured it."""
    scores = [
        (_weight(one), score) for one in told if (score := _number(one.metrics.get(metric))) is not None
    ]
    values = sorted(score for _, score in scores)
    if not values:
        return None
    return Spread(
        len(values),
        _mean(scores),
        quantile(values, TENTH),
        quantile(values, 0.5),
        quantile(values, 1 - TENTH),
        _worst(values, least_is_best=lower_is_better(metric)),
    )


def quantile(values: Sequence[float], part: float) -> float:
    """Of sorted values, linear between neighbours (Hyndman and Fan 1996, type 7, as numpy's default)."""
    at = part * (len(values) - 1)
    below = math.floor(at)
    above = min(below + 1, len(values) - 1)
    return values[below] + (at - below) * (values[above] - values[below])


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) <= CLAIM_MAX else None


def _weight(told: Told) -> float:
    own = _number(told.metrics.get(OWN_SAMPLES))
    if own is None or own <= 0:
        return float(told.samples)
    return min(own, float(OWN_SAMPLES_MAX * told.samples))


def _mean(scores: Sequence[tuple[float, float]]) -> float:
    weight = math.fsum(weight for weight, _ in scores)
    if not weight:
        return math.fsum(score for _, score in scores) / len(scores)
    return math.fsum(weight * score for weight, score in scores) / weight


def _worst(values: Sequence[float], *, least_is_best: bool) -> float:
    count = math.ceil(TENTH * len(values))
    worst = values[-count:] if least_is_best else values[:count]
    return math.fsum(worst) / count
