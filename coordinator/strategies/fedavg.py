"""Averaging, without and with momentum at the server. Δ is a round's mean change, weighted by samples."""

from __future__ import annotations

import numpy as np

from coordinator.strategies.optimiser import Floats
from schemas.jobs import ServerSettings


class FedAvg:
    """x ← x + η·Δ (McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized
    data", algorithm 1, where η is 1)."""

    begins = ()

    def __init__(self, settings: ServerSettings) -> None:
        self._rate = settings.rate

    def step(self, mean: Floats, moments: Floats) -> None:
        mean *= self._rate


class FedAvgM:
    """m ← β₁·m + Δ; x ← x + η·m (Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data
    distribution for federated visual classification", section 3.1)."""

    begins = (0.0,)

    def __init__(self, settings: ServerSettings) -> None:
        self._rate = settings.rate
        self._beta = settings.beta_1

    def step(self, mean: Floats, moments: Floats) -> None:
        (first,) = moments
        first *= self._beta
        first += mean
        np.multiply(first, self._rate, out=mean)
