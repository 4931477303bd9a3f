"""What hostile devices send. They act together and know every honest update of their round.

- sign flip: four times their own change, backwards.
- noise: a random direction, ten times as long as their own change.
- label flip: an honest change, of labels that were flipped (`tests.bench.learners.train`).
- ALIE (Baruch et al. 2019, "A little is enough"): μ - z·σ in each coordinate, μ and σ of the honest changes,
  z = 1.5 as in the paper's experiments: within what honest devices do.
- IPM (Xie et al. 2020, "Fall of empires"): -ε·μ, ε = 0.5: short, and against the honest mean.
- adaptive: chooses each round among backwards means and deviations of several lengths the one that has undone
  most of the honest mean so far, -Δ·μ / ‖μ‖² (upper confidence bound, Auer et al. 2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ATTACKS: Final = ("none", "sign flip", "noise", "label flip", "ALIE", "IPM", "adaptive")
MENU: Final = (
    *(("mean", size) for size in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
    *(("deviation", size) for size in (0.5, 1.0, 1.5, 2.5, 4.0)),
    *(("against", size) for size in (0.5, 1.0, 1.5, 2.5, 4.0)),
)


@dataclass
class Attackers:
    """One kind of attack through the rounds of a run."""

    kind: str
    rng: np.random.Generator
    _tried: list[list[float]] = field(default_factory=lambda: [[] for _ in MENU])
    _choice: int = 0
    _mean: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    def forge(self, changes: Floats, hostile: NDArray[np.bool_]) -> None:
        """Put what they send in place of what they learned."""
        self._mean = changes[~hostile].mean(axis=0)
        own, honest = changes[hostile], changes[~hostile]
        if not len(own):
            self._choice = -1
            return
        match self.kind:
            case "sign flip":
                changes[hostile] = -4 * own
            case "noise":
                noise = self.rng.standard_normal(own.shape).astype(np.float32)
                lengths = np.linalg.norm(own, axis=1) / np.linalg.norm(noise, axis=1)
                changes[hostile] = 10 * noise * lengths[:, np.newaxis]
            case "ALIE":
                changes[hostile] = self._mean - 1.5 * honest.std(axis=0)
            case "IPM":
                changes[hostile] = -0.5 * self._mean
            case "adaptive":
                changes[hostile] = self._chosen(honest)

    def see(self, delta: NDArray[np.float64]) -> None:
        """The round's Δ, which the next model shows them."""
        if self.kind == "adaptive" and self._choice >= 0:
            undone = -float(delta @ self._mean) / (float(self._mean @ self._mean) or 1.0)
            self._tried[self._choice].append(undone)

    def _chosen(self, honest: Floats) -> Floats:
        total = 1 + sum(map(len, self._tried))

        def hope(place: int) -> float:
            seen = self._tried[place]
            return float(np.mean(seen)) + math.sqrt(0.1 * math.log(total) / len(seen)) if seen else math.inf

        self._choice = max(range(len(MENU)), key=hope)
        what, size = MENU[self._choice]
        if what == "mean":
            return np.asarray(-size * self._mean)
        way = np.sign(self._mean) if what == "against" else np.float32(1)
        return np.asarray(self._mean - size * way * honest.std(axis=0))
