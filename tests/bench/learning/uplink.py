"""Encodings beside float32: bytes of an update on the wire, final accuracy and rounds to 90 %, on digits with
an MLP of 105,010 parameters.

All meet the same splits, first parameters, cohorts and batches under the same seed. Bytes are what the
devices of a simulation publish, envelopes and all that is said about an update included. Which of the
encodings that are `TIMES_LESS` as thin is held to the bounds, is chosen on seeds of their own: the one with
the best final accuracy.
"""

from __future__ import annotations

from typing import Any, Final

from tests.bench.learning import strategies
from tests.bench.learning.processes import Spread, beside
from tests.bench.learning.strategies import Fields, Plan

TIMES_LESS: Final = 25
ENCODINGS: Final = ("float32", "eden1", "topk")  # the first is what the others are held against
PLAN: Final = Plan(rounds=60, alphas=(0.1, 0.3), hidden=1_400)


def measure(plan: Plan = PLAN, spread: Spread = beside) -> dict[str, Any]:
    """As `strategies.measure`, with how many times less each encoding sends, and which one was chosen."""
    grid: dict[str, list[Fields]] = {name: [{"compression": {"up": name}}] for name in ENCODINGS}
    compared = strategies.measure(plan, grid, spread)
    up = {name: each["up"] for name, each in compared["bytes_of_a_request"].items()}
    for row in compared["rows"]:
        row["times_less"] = up[ENCODINGS[0]] / up[row["strategy"]]
    thin = [name for name in ENCODINGS if up[ENCODINGS[0]] >= TIMES_LESS * up[name]]
    tried = strategies._try(plan, [grid[name][0] for name in thin], spread)
    best = max(range(len(thin)), key=lambda at: float(tried[at]["final"]), default=None)
    compared["tried"] = dict(zip(thin, tried, strict=True))
    del compared["anchors"]  # of the small model
    return compared | {"best_thin": None if best is None else thin[best]}
