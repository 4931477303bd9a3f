"""FedNova beside FedAvg where each device takes another number of local steps: 2 to 5, and 1 to 20."""

from __future__ import annotations

from typing import Any, Final

from tests.bench.learning import strategies
from tests.bench.learning.processes import Spread, beside
from tests.bench.learning.strategies import Plan

RANGES: Final = ((2, 5), (1, 20))
RATES: Final = (0.05, 0.1, 0.2, 0.4)  # of local training
SIDES: Final[dict[str, list[dict[str, Any]]]] = {
    name: [{"server": {"normalised": normalised}, "local": {"learning_rate": rate}} for rate in RATES]
    for name, normalised in (("FedAvg", False), ("FedNova", True))
}
PLAN: Final = Plan(rounds=300, alphas=(0.1, 0.3), seeds=tuple(range(10)))


def measure(plan: Plan = PLAN, spread: Spread = beside) -> dict[str, Any]:
    """A comparison of the two for each range."""
    plans = [Plan(**vars(plan) | {"steps": steps}) for steps in RANGES]
    return {"ranges": [strategies.measure(each, SIDES, spread) for each in plans]}
