"""What updates count in their round's mean (`weighing`), what may stand for it (`robust`), and how it moves
the model: a small pure module for each family of server optimisers.

All work on blocks of coordinates, elementwise, in float64: multiply, add, divide and square root are rounded
alike on every machine, so a replay has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coordinator.strategies.fedavg import FedAvg, FedAvgM
from coordinator.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from coordinator.strategies.optimiser import Moments, Remembering, ServerOptimiser, begun, digest_of
from coordinator.strategies.robust import Aggregation, Told, Updates, aggregation
from coordinator.strategies.weighing import Weight, radius_after, weigh
from schemas.jobs import ServerSettings

__all__ = [
    "Aggregation",
    "Moments",
    "ServerOptimiser",
    "Told",
    "Updates",
    "Weight",
    "aggregation",
    "begun",
    "digest_of",
    "radius_after",
    "server_optimiser",
    "weigh",
]

_MADE_BY: Final[dict[str, Callable[[ServerSettings], ServerOptimiser]]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}


def server_optimiser(settings: ServerSettings, version: int = 1) -> ServerOptimiser:
    """The one that a job names, as it makes ``version``: its learning rate may have a schedule. What it keeps
    ends with the last Δ where changes are clipped around it."""
    optimiser = _MADE_BY[settings.optimiser](settings.of_version(version))
    return Remembering(optimiser) if settings.clip_centre else optimiser
