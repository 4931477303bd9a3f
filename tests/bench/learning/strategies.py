"""Strategies beside each other on digits: rounds and bytes to 90 %, final accuracy, at three skews.

Every strategy meets the same splits, first parameters, cohorts and batches under the same seed, so they are
compared pair by pair. Each has one setting for all skews, as an operator does not know the skew: of its grid,
tried on seeds of their own, the one that needs the fewest rounds among those whose final accuracy is within
`CLOSE` of the grid's best.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from msgspec.structs import replace

from tests.bench.learning import digits, direct, simulated, stats
from tests.bench.learning.processes import Spread, beside

Fields = dict[str, Any]
Curves = dict[tuple[int, float, int], list[float]]  # setting, alpha, seed

CLOSE: Final = 0.01
ANCHORS: Final = {0.1: 0.955, 0.3: 0.959, 0.5: 0.962}  # of the numpy reference, 3 seeds


def _server(optimiser: str, rates: Sequence[float], **more: Sequence[float]) -> list[Fields]:
    """All combinations, as fields of jobs."""
    settings: list[Fields] = [{"optimiser": optimiser, "learning_rate": rate} for rate in rates]
    for name, values in more.items():
        settings = [each | {name: value} for each in settings for value in values]
    return [{"server": each} for each in settings]


# A strategy is a line: its name, and the settings that it is tuned over (fields of the job).
STRATEGIES: Final[dict[str, list[Fields]]] = {
    "FedAvg": [{"server": {"optimiser": "fedavg"}}],
    "FedAvgM": _server("fedavgm", (0.1, 0.3, 1.0), beta_1=(0.5, 0.9)),
    "FedAdagrad": _server("fedadagrad", (0.03, 0.1, 0.3), tau=(1e-3, 1e-2)),
    "FedAdam": _server("fedadam", (0.01, 0.03, 0.1), tau=(1e-3, 1e-2)),
    "FedYogi": _server("fedyogi", (0.01, 0.03, 0.1), tau=(1e-3, 1e-2)),
    "FedNova": [{"server": {"optimiser": "fedavg", "normalised": True}}],
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all strategies meet. ``steps``: each device always takes so many local steps, drawn for it from
    the first number to the second; otherwise what the job's epochs come to."""

    devices: int = digits.DEVICES
    rounds: int = 100
    alphas: Sequence[float] = (0.1, 0.3, 0.5)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    tuned_on: Sequence[int] = (100, 101, 102)
    steps: tuple[int, int] | None = None
    hidden: int = digits.HIDDEN


def measure(
    plan: Plan | None = None, strategies: dict[str, list[Fields]] = STRATEGIES, spread: Spread = beside
) -> Fields:
    """Curves of all strategies, and what they come to. The first one is what the others are compared with."""
    plan = plan or Plan()
    chosen, tried = {}, {}
    for name, grid in strategies.items():
        tried[name] = _try(plan, grid, spread) if len(grid) > 1 else []
        chosen[name] = grid[_best(tried[name])] if tried[name] else grid[0]
    curves = _curves(plan, list(chosen.values()), plan.seeds, spread)
    of_request = {name: wire(fields, plan.hidden) for name, fields in chosen.items()}
    rows = []
    for alpha in plan.alphas:
        for index, name in enumerate(chosen):
            found = [curves[index, alpha, seed] for seed in plan.seeds]
            base = [curves[0, alpha, seed] for seed in plan.seeds]
            row = {"alpha": alpha, "strategy": name}
            rows.append(row | told(plan, found, base, sum(of_request[name].values())))
    return {
        "plan": asdict(plan),
        "anchors": {str(alpha): value for alpha, value in ANCHORS.items()},
        "tried": tried,
        "chosen": chosen,
        "bytes_of_a_request": of_request,
        "rows": rows,
    }


def told(plan: Plan, found: list[list[float]], base: list[list[float]], request_bytes: int) -> Fields:
    """What the curves of one strategy come to, beside those of the first one under the same seeds. A target
    that was not reached counts as one round more than there were in the comparison."""
    rounds = [stats.first(each) for each in found]
    round_bytes = min(direct.COHORT, plan.devices) * request_bytes
    never = plan.rounds + 1
    finals, base_finals = [stats.final(each) for each in found], [stats.final(each) for each in base]
    return {
        "accuracy": [[round(each, 4) for each in curve] for curve in found],
        "rounds_to_target": rounds,
        "bytes_to_target": [None if each is None else each * round_bytes for each in rounds],
        "final": finals,
        "final_mean": fmean(finals),
        "final_over_first": stats.difference(finals, base_finals),
        "fewer_rounds_than_first": stats.ratio(
            [each or never for each in rounds], [stats.first(each) or never for each in base]
        ),
    }


def wire(fields: Fields, hidden: int = digits.HIDDEN) -> dict[str, int]:
    """Bytes of one training request with its answer, up and down, as the parties of a simulation publish
    them: the request, the model's chunks, the sealed update and all that is said about them."""
    devices = 6
    split = digits.split(devices, 1.0, 0)
    totals = []
    for rounds in (1, 3):
        asked = direct.job_fields(0, rounds=rounds, cohort=devices, deadline_s=86_400.0, **fields)
        learned = simulated.learn(0, split, "half-normal", asked, hidden)
        totals.append((learned.up_bytes, learned.down_bytes))
    (up_1, down_1), (up_3, down_3) = totals
    return {"up": (up_3 - up_1) // (2 * devices), "down": (down_3 - down_1) // (2 * devices)}


def _try(plan: Plan, grid: list[Fields], spread: Spread) -> list[Fields]:
    curves = _curves(plan, grid, plan.tuned_on, spread)
    tried = []
    for index, fields in enumerate(grid):
        found = [curves[index, alpha, seed] for alpha in plan.alphas for seed in plan.tuned_on]
        reached = [stats.first(each) for each in found]
        means = {"rounds": fmean(each or plan.rounds + 1 for each in reached)}
        means["final"] = fmean(stats.final(each) for each in found)
        tried.append(fields | means)
    return tried


def _best(tried: list[Fields]) -> int:
    final = max(each["final"] for each in tried)
    close = [index for index, each in enumerate(tried) if each["final"] >= final - CLOSE]
    return min(close, key=lambda index: float(tried[index]["rounds"]))


def _curves(plan: Plan, settings: list[Fields], seeds: Sequence[int], spread: Spread) -> Curves:
    keys = [(index, alpha, seed) for index in range(len(settings)) for alpha in plan.alphas for seed in seeds]
    found = spread(curve, [(plan, settings[index], alpha, seed) for index, alpha, seed in keys])
    return dict(zip(keys, found, strict=True))


def curve(plan: Plan, fields: Fields, alpha: float, seed: int) -> list[float]:
    """Central accuracy of each version of one run."""
    asked = direct.job(seed, rounds=plan.rounds, **fields)
    own = {}
    if plan.steps is not None:
        draw = random.Random(f"{seed}:steps")
        for device in range(plan.devices):  # an epoch has a step at least
            own[device] = replace(asked.local, epochs=plan.steps[1], steps_max=draw.randint(*plan.steps))
    fleet = direct.Digits(digits.split(plan.devices, alpha, seed), seed, own, plan.hidden)
    return list(direct.accuracies(asked, fleet))
