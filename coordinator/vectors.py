"""Steps from model to model, their lengths and angles; sums go by blocks, as everywhere."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from coordinator.fold import BLOCK


def step(base: bytes, model: bytes, count: int) -> NDArray[np.float64]:
    """From one model to the other, over the trained coordinates."""
    first, second = (np.frombuffer(data, dtype="<f4", count=count) for data in (base, model))
    step: NDArray[np.float64] = second.astype(np.float64) - first
    return step


def _inner(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Block by block: `np.dot` would give other bits on other processors."""
    return math.fsum(float(np.sum(a[at : at + BLOCK] * b[at : at + BLOCK])) for at in range(0, len(a), BLOCK))


def norm(a: NDArray[np.float64]) -> float:
    """L2."""
    return math.sqrt(_inner(a, a))


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """None where one of them is nothing."""
    sizes = norm(a) * norm(b)
    return _inner(a, b) / sizes if sizes else None
