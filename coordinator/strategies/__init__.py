"""What updates count in their round's mean (`weighing`), and how the mean moves the model: a small pure
module for each family of server optimisers.

All work on blocks of coordinates, elementwise, in float64: multiply, add, divide and square root are rounded
alike on every machine, so a replay has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coordinator.strategies.fedavg import FedAvg, FedAvgM
from coordinator.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from coordinator.strategies.installed import NoSuchOptimiser, find
from coordinator.strategies.optimiser import Moments, ServerOptimiser, begun, digest_of
from coordinator.strategies.weighing import Weight, weigh
from schemas.jobs import ServerSettings

__all__ = [
    "Moments",
    "NoSuchOptimiser",
    "ServerOptimiser",
    "Weight",
    "begun",
    "digest_of",
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
    """The one that a job names, as it makes ``version``: its learning rate may have a schedule.

    Raises `NoSuchOptimiser` where it is one of another package that is not here.
    """
    made_by = _MADE_BY.get(settings.optimiser) or find(settings.optimiser)
    return made_by(settings.of_version(version))
