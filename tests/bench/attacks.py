"""A fifth of the devices attacks: what each rule leaves of the accuracy.

Digits on 50 Dirichlet devices (`tests.bench.learners`), 20 drawn for each of 100 rounds, 10 of the 50 hostile
(`tests.bench.attackers`). What updates count, the rules over all of them, the radius and the server optimiser
are the coordinator's own (`coordinator.strategies`). Settings were chosen on seeds 100 to 102; 0 to 4 are
reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import Any, Final

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from coordinator.state import Request
from coordinator.strategies import aggregation, begun, radius_after, server_optimiser, weigh
from schemas.jobs import JobSpec, ServerSettings
from tests.bench.attackers import ATTACKS, Attackers
from tests.bench.learners import COUNT, DEVICES, accuracy, first_model, split, train

ROUNDS, COHORT, HOSTILE = 100, 20, 10
SEEDS: Final = {0.5: range(5), 0.1: range(2)}  # by alpha
LAST: Final = 10  # rounds whose accuracies are averaged: what one of them has is chance
CENTRED: Final = ServerSettings(
    clip_norm=2.0, clip_quantile=0.3, clip_centre=True, optimiser="fedavgm", learning_rate=0.1
)
RULES: Final = {
    "mean": ServerSettings(),
    "median": ServerSettings(aggregation="median"),
    "trimmed mean": ServerSettings(aggregation="trimmed_mean", trim=0.35),
    "multi-Krum": ServerSettings(aggregation="multi_krum", byzantine=6),
    "centred, 0.5": replace(CENTRED, clip_quantile=0.5),
    "centred, 0.3": CENTRED,
}
RECOMMENDED: Final = "centred, 0.3"


@dataclass(frozen=True)
class Held:
    """`coordinator.strategies.Updates` in memory."""

    changes: NDArray[np.float32]
    scales: NDArray[np.float64]

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        yield 0, self.changes


class Server:
    """Rounds as the coordinator makes them, under one job's settings."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._spec = JobSpec(name="attacked", task="digits", server=settings)
        self._optimiser = server_optimiser(settings)
        self._moments = begun(self._optimiser, COUNT)
        self._radius = 0.0

    def round(self, changes: NDArray[np.float32], samples: list[int]) -> tuple[NDArray[np.float64], ...]:
        """Δ, and the step of the model."""
        centre = self._moments[-1].astype(np.float64) if self._settings.clip_centre else np.zeros(COUNT)
        exact = changes.astype(np.float64)
        norms, ways = (np.sqrt((each**2).sum(axis=1)).tolist() for each in (exact, exact - centre))
        requests = [
            Request("", 1, 1, b"", norm=norm, distance=way, samples=count, steps=1)
            for norm, way, count in zip(norms, ways, samples, strict=True)
        ]
        weights = [weigh(request, self._spec, self._radius) for request in requests]
        scales = np.array([weight.scale for weight in weights])
        if rule := aggregation(self._settings):
            delta = np.empty(COUNT)
            rule(Held(changes, scales), delta)
        else:
            shares = np.array(samples) / sum(samples) * scales
            delta = centre + (shares[:, np.newaxis] * (exact - centre)).sum(axis=0)
        self._radius = radius_after(requests, self._spec, self._radius)
        step, kept = delta.copy(), self._moments.astype(np.float64)
        self._optimiser.step(step, kept)
        self._moments[:] = kept
        return delta, step


def run(settings: ServerSettings, attack: str, alpha: float, seed: int) -> float:
    """The accuracy after all rounds: the mean of the last `LAST`."""
    data, model, rng = split(alpha, seed), first_model(seed), np.random.default_rng([4, seed])
    hostile = set() if attack == "none" else set(rng.permutation(DEVICES)[:HOSTILE].tolist())
    attackers, server, found = Attackers(attack, rng), Server(settings), []
    draw = np.random.default_rng([5, seed])  # the same devices whatever the attack is
    for round_ in range(ROUNDS):
        cohort = sorted(draw.permutation(DEVICES)[:COHORT].tolist())
        flipped = hostile if attack == "label flip" else set()
        changes = train(data, model, cohort, flipped, [seed, round_])
        attackers.forge(changes, np.array([device in hostile for device in cohort]))
        if not np.isfinite(changes).all():
            return 0.0
        delta, step = server.round(changes, [len(data.parts[device]) for device in cohort])
        attackers.see(delta)
        model = (model + step).astype(np.float32)
        if round_ >= ROUNDS - LAST:
            found.append(accuracy(data, model))
    return mean(found)


def table(rules: dict[str, ServerSettings], alpha: float, seeds: range) -> list[dict[str, Any]]:
    """A row for each rule and attack, with the accuracy of each seed."""
    cells = list(product(rules, ATTACKS))
    with ProcessPoolExecutor(max_workers=2) as pool:
        futures = [
            [pool.submit(run, rules[rule], attack, alpha, seed) for seed in seeds] for rule, attack in cells
        ]
        return [
            {"rule": rule, "attack": attack, "alpha": alpha, "accuracy": [each.result() for each in row]}
            for (rule, attack), row in zip(cells, futures, strict=True)
        ]


def measure() -> dict[str, Any]:
    """The table, and what the recommended settings lose against a mean that nobody attacks."""
    return told([row for alpha, seeds in SEEDS.items() for row in table(RULES, alpha, seeds)])


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows, and what they are of."""
    return {
        "devices": DEVICES,
        "hostile": HOSTILE,
        "cohort": COHORT,
        "rounds": ROUNDS,
        "seeds": {str(alpha): list(seeds) for alpha, seeds in SEEDS.items()},
        "attacks": list(ATTACKS),
        "rules": {name: msgspec.to_builtins(settings) for name, settings in RULES.items()},
        "recommended": RECOMMENDED,
        "lost": {str(alpha): lost(rows, alpha) for alpha in SEEDS},
        "rows": rows,
    }


def lost(rows: list[dict[str, Any]], alpha: float) -> dict[str, Any]:
    """Points of accuracy between the mean without an attack and the recommended settings under the worst one,
    paired by seed, with a bootstrap interval of 95 %."""
    found = {(row["rule"], row["attack"]): row["accuracy"] for row in rows if row["alpha"] == alpha}
    worst = min(ATTACKS, key=lambda attack: mean(found[RECOMMENDED, attack]))
    pairs = zip(found["mean", "none"], found[RECOMMENDED, worst], strict=True)
    points = 100 * np.array([clean - attacked for clean, attacked in pairs])
    drawn = np.random.default_rng(0).choice(points, (10_000, len(points))).mean(axis=1)
    interval = np.quantile(drawn, [0.025, 0.975]).tolist()
    return {"attack": worst, "points": float(points.mean()), "interval": interval}
