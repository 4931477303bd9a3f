"""What is said of curves: rounds to a target, final accuracy, and paired comparisons with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TARGET: Final = 0.9
FINAL_VERSIONS: Final = 10
"""The final accuracy is the mean of so many last versions: single ones go up and down with their cohorts."""
RESAMPLES: Final = 10_000
SHARE: Final = 0.95  # of the intervals

Result = dict[str, Any]


def first(accuracies: Sequence[float], target: float = TARGET) -> int | None:
    """The first version that reaches the target."""
    return next((version for version, each in enumerate(accuracies) if each >= target), None)


def final(accuracies: Sequence[float]) -> float:
    """See `FINAL_VERSIONS`."""
    return fmean(accuracies[-FINAL_VERSIONS:])


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Mean of ours less theirs, pair by pair, and the bootstrap interval of that mean."""
    return _interval(np.subtract(ours, theirs), lambda mean: mean)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Geometric mean of theirs / ours, pair by pair, and its interval: above 1 where ours needs less."""
    return _interval(np.log(theirs) - np.log(ours), lambda mean: float(np.exp(mean)))


def _interval(pairs: NDArray[np.float64], shown: Callable[[float], float]) -> dict[str, float]:
    """Percentile bootstrap over pairs (Efron and Tibshirani 1993, chapter 13)."""
    draws = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    low, high = np.quantile(pairs[draws].mean(axis=1), [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return {"mean": shown(float(pairs.mean())), "low": shown(float(low)), "high": shown(float(high))}
