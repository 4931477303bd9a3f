"""What all server optimisers have in common."""

from __future__ import annotations

from hashlib import sha256
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Moments = NDArray[np.float32]
"""What an optimiser keeps from version to version: (vectors, parameters)."""


class ServerOptimiser(Protocol):
    """A rule that turns a round's mean change into a step of the model."""

    @property
    def begins(self) -> tuple[float, ...]:
        """What each vector that it keeps begins with, in every coordinate."""
        ...

    def step(self, mean: Floats, moments: Floats) -> None:
        """Turn ``mean``, a block of coordinates of the round's mean change, into the model's step, and bring
        ``moments``, the same coordinates of each vector that is kept, up to date; both in place."""
        ...


class Remembering:
    """Another optimiser, and beside what it keeps, last, the Δ that it was given."""

    def __init__(self, optimiser: ServerOptimiser) -> None:
        self._optimiser = optimiser
        self.begins = (*optimiser.begins, 0.0)

    def step(self, mean: Floats, moments: Floats) -> None:
        moments[-1] = mean
        self._optimiser.step(mean, moments[:-1])


def begun(optimiser: ServerOptimiser, count: int) -> Moments:
    """What the optimiser keeps before the first round of a model of ``count`` parameters."""
    moments: Moments = np.empty((len(optimiser.begins), count), dtype="<f4")
    for vector, begin in zip(moments, optimiser.begins, strict=True):
        vector.fill(begin)
    return moments


def digest_of(moments: Moments) -> bytes:
    """SHA-256 of all vectors, one after the other; empty where there are none."""
    return sha256(moments.data).digest() if len(moments) else b""
