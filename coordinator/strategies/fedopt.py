"""Adaptive steps at the server: Reddi et al. 2021, "Adaptive federated optimization", algorithm 2.

With Δ the mean change of a round, all elementwise:

    m ← β₁·m + (1 - β₁)·Δ
    v ← v + Δ²                              FedAdagrad
    v ← β₂·v + (1 - β₂)·Δ²                  FedAdam
    v ← v - (1 - β₂)·Δ²·sign(v - Δ²)        FedYogi
    x ← x + η·m / (√v + τ)

m begins with 0, v with τ², as section 5 has it; there is no correction for these beginnings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from coordinator.strategies.optimiser import Floats
from schemas.jobs import ServerSettings


class _Adaptive(ABC):
    def __init__(self, settings: ServerSettings) -> None:
        self._rate = settings.rate
        self._beta_1, self._beta_2 = settings.beta_1, settings.beta_2
        self._tau = settings.tau
        self.begins = (0.0, settings.tau * settings.tau)

    def step(self, mean: Floats, moments: Floats) -> None:
        first, second = moments
        first *= self._beta_1
        first += mean * (1.0 - self._beta_1)
        self._follow(second, mean * mean)
        np.multiply(first, self._rate, out=mean)
        mean /= np.sqrt(second) + self._tau

    @abstractmethod
    def _follow(self, second: Floats, squares: Floats) -> None:
        """Bring v up to date with Δ²."""


class FedAdagrad(_Adaptive):
    """v is the sum of all squares: steps grow ever shorter."""

    def _follow(self, second: Floats, squares: Floats) -> None:
        second += squares


class FedAdam(_Adaptive):
    """v forgets old squares at the same rate everywhere."""

    def _follow(self, second: Floats, squares: Floats) -> None:
        second *= self._beta_2
        second += squares * (1.0 - self._beta_2)


class FedYogi(_Adaptive):
    """v moves by as much as the new square tells: a sudden small Δ doesn't let it fall."""

    def _follow(self, second: Floats, squares: Floats) -> None:
        sign = np.sign(second - squares)
        second -= squares * (1.0 - self._beta_2) * sign
