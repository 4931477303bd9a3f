"""Virtual time to 90 %: asynchronous rounds against synchronous ones that ask 26 devices and close with 20.

Both with the production coordinator and agents on the virtual clock, 26 devices training at a time, under
three delay models and two skews. Both fold as many updates. Each side has one setting for all cells, of a
grid tried on seeds of its own: the one with the least geometric mean of the time to the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, geometric_mean
from typing import Any, Final

import numpy as np

from tests.bench.learning import digits, direct, simulated, stats
from tests.bench.learning.delays import MODELS
from tests.bench.learning.digits import Samples, Split
from tests.bench.learning.processes import Spread, beside

Fields = dict[str, Any]

CONCURRENCY: Final = 26
SYNCHRONOUS: Final[list[Fields]] = [
    {"cohort": 20, "over_selection": 1.3, "server": {"learning_rate": rate}} for rate in (1.0, 1.5)
]
ASYNCHRONOUS: Final[list[Fields]] = [
    {
        "cohort": 10,
        "asynchronous": {"concurrency": CONCURRENCY, "weighting": weighting, "staleness_max": staleness_max},
        "server": {"learning_rate": rate},
    }
    for weighting, staleness_max in (("constant", 20), ("polynomial", 20))
    for rate in (1.0, 1.5)
]
SIDES: Final = {"synchronous": SYNCHRONOUS, "asynchronous": ASYNCHRONOUS}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both sides meet. A side's rounds follow from ``updates``, the updates that are folded."""

    devices: int = digits.DEVICES
    updates: int = 800
    delays: Sequence[str] = tuple(MODELS)
    alphas: Sequence[float] = (0.1, 0.3)
    seeds: Sequence[int] = tuple(range(7))
    tuned_on: Sequence[int] = (100,)


def measure(
    plan: Plan | None = None, sides: dict[str, list[Fields]] = SIDES, spread: Spread = beside
) -> Fields:
    """All cells, and how much sooner the second side is there than the first."""
    plan = plan or Plan()
    tried = {name: _try(plan, grid, spread) if len(grid) > 1 else [] for name, grid in sides.items()}
    chosen = {name: _best(grid, tried[name]) for name, grid in sides.items()}
    cells = [(delay, alpha) for delay in plan.delays for alpha in plan.alphas]
    calls = [
        (plan, fields, delay, alpha, seed)
        for delay, alpha in cells
        for fields in chosen.values()
        for seed in plan.seeds
    ]
    found = iter(spread(play, calls))
    rows = []
    for delay, alpha in cells:
        row: Fields = {"delay": delay, "alpha": alpha}
        for name in chosen:
            row[name] = _gathered([next(found) for _ in plan.seeds])
        rows.append(row | _compared(row, list(chosen)))
    return {"plan": asdict(plan), "tried": tried, "chosen": chosen, "rows": rows}


def play(plan: Plan, fields: Fields, delay: str, alpha: float, seed: int) -> Fields:
    """One run: when each version came, in units, and its accuracy; that of the slow devices; the traffic."""
    split = digits.split(plan.devices, alpha, seed)
    rounds = -(-plan.updates // fields["cohort"])
    patient = {"min_reports": fields["cohort"], "deadline_s": 2_592_000.0, "rounds": rounds}
    learned = simulated.learn(seed, split, delay, direct.job_fields(seed, **patient, **fields))
    if learned.end != "finished":
        raise RuntimeError(f"{delay}, alpha {alpha:g}, seed {seed}: the job was {learned.end}")
    accuracy = [digits.accuracy(model, split.test) for model in learned.models]
    reached = stats.first(accuracy)
    last = learned.models[-stats.FINAL_VERSIONS :]
    told: Fields = {
        "units": [round(each, 3) for each in learned.units],
        "accuracy": [round(each, 4) for each in accuracy],
        "units_to_target": None if reached is None else learned.units[reached],
        "final": stats.final(accuracy),
        "folded": learned.folded,
        "rejected": learned.rejected,
        "up_bytes": learned.up_bytes,
        "down_bytes": learned.down_bytes,
    }
    if learned.slow:
        held = split.held_by(learned.slow)
        told["slow"] = fmean(digits.accuracy(model, held) for model in last)
        told["slow_unseen"] = fmean(_unseen(model, held, split) for model in last)
    return told


def _unseen(model: digits.Floats, held: Samples, split: Split) -> float:
    """Accuracy on test images in the shares that the labels have in ``held``."""
    found = 0.0
    for label in np.unique(held.y):
        of_label = split.test.y == label
        part = Samples(split.test.x[of_label], split.test.y[of_label])
        found += float(np.mean(held.y == label)) * digits.accuracy(model, part)
    return found


def _try(plan: Plan, grid: list[Fields], spread: Spread) -> list[Fields]:
    calls = [
        (plan, fields, delay, alpha, seed)
        for fields in grid
        for delay in plan.delays
        for alpha in plan.alphas
        for seed in plan.tuned_on
    ]
    found = spread(play, calls)
    each = len(calls) // len(grid)
    return [
        fields
        | {
            "units": geometric_mean(_counted(one) for one in found[at * each : (at + 1) * each]),
            "final": fmean(one["final"] for one in found[at * each : (at + 1) * each]),
        }
        for at, fields in enumerate(grid)
    ]


def _best(grid: list[Fields], tried: list[Fields]) -> Fields:
    if not tried:
        return grid[0]
    return grid[min(range(len(grid)), key=lambda at: float(tried[at]["units"]))]


def _counted(one: Fields) -> float:
    """Time to the target; where it was not reached, the whole run's."""
    return float(one["units"][-1] if one["units_to_target"] is None else one["units_to_target"])


def _gathered(runs: list[Fields]) -> Fields:
    """One value of each kind for each seed."""
    return {name: [run[name] for run in runs] for name in runs[0]} | {"counted": [_counted(r) for r in runs]}


def _compared(row: Fields, names: list[str]) -> Fields:
    if len(names) < 2:
        return {}
    theirs, ours = (row[name] for name in names)
    compared = {"speed_up": stats.ratio(ours["counted"], theirs["counted"])}
    for what in ("final", "slow", "slow_unseen"):
        if what in ours:
            compared[f"{what}_over_first"] = stats.difference(ours[what], theirs[what])
    return compared
