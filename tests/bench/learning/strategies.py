"""Strategies beside each other on digits: rounds and bytes to 90 %, final accuracy, at three skews.

Every strategy meets the same splits, first parameters, cohorts and batches under the same seed, so they are
compared pair by pair. Each has one setting for all skews, as an operator does not know the skew: of its grid,
tried on seeds of their own, the one that needs the fewest rounds among those whose final accuracy is within
`CLOSE` of the grid's best.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final

from tests.bench.learning import digits, direct, simulated, stats
from tests.bench.learning.processes import Spread, beside

Fields = dict[str, Any]
Curves = dict[tuple[int, float, int], list[float]]  # setting, alpha, seed

ALPHAS: Final = (0.1, 0.3, 0.5)
SEEDS: Final = (0, 1, 2, 3, 4)
TUNED_ON: Final = (100, 101, 102)
ROUNDS: Final = 100
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
    "FedAdagrad": _server("fedadagrad", (0.01, 0.03, 0.1), tau=(1e-3, 1e-2)),
    "FedAdam": _server("fedadam", (0.003, 0.01, 0.03), tau=(1e-3, 1e-2)),
    "FedYogi": _server("fedyogi", (0.003, 0.01, 0.03), tau=(1e-3, 1e-2)),
    "FedNova": [{"server": {"optimiser": "fedavg", "normalised": True}}],
}


def measure(
    devices: int = digits.DEVICES,
    rounds: int = ROUNDS,
    alphas: Sequence[float] = ALPHAS,
    seeds: Sequence[int] = SEEDS,
    tuned_on: Sequence[int] = TUNED_ON,
    strategies: dict[str, list[Fields]] = STRATEGIES,
    spread: Spread = beside,
) -> Fields:
    """Curves of all strategies, and what they come to."""
    chosen, tried = {}, {}
    for name, grid in strategies.items():
        tried[name] = _try(grid, devices, rounds, alphas, tuned_on, spread) if len(grid) > 1 else []
        chosen[name] = grid[_best(tried[name])] if tried[name] else grid[0]
    settings = list(chosen.values())
    curves = _curves(settings, devices, rounds, alphas, seeds, spread)
    of_request = {name: wire(fields) for name, fields in chosen.items()}
    rows = []
    for alpha in alphas:
        for index, name in enumerate(chosen):
            found = [curves[index, alpha, seed] for seed in seeds]
            base = [curves[0, alpha, seed] for seed in seeds]
            rows.append({"alpha": alpha, "strategy": name} | told(found, base, of_request[name], devices))
    return {
        "devices": devices,
        "rounds": rounds,
        "seeds": list(seeds),
        "anchors": {str(alpha): value for alpha, value in ANCHORS.items()},
        "tuned_on": list(tuned_on),
        "tried": tried,
        "chosen": chosen,
        "bytes_of_a_request": of_request,
        "rows": rows,
    }


def told(
    found: list[list[float]], base: list[list[float]], of_request: dict[str, int], devices: int
) -> Fields:
    """What the curves of one strategy come to, beside FedAvg's of the same seeds. A target that was not
    reached counts as all rounds in the comparison."""
    rounds = [stats.first(each) for each in found]
    ends = [len(each) - 1 for each in base]
    per_round = min(direct.COHORT, devices) * sum(of_request.values())

    def counted(curves: list[list[float]]) -> list[float]:
        return [stats.first(each) or end for each, end in zip(curves, ends, strict=True)]

    return {
        "accuracy": [[round(each, 4) for each in curve] for curve in found],
        "rounds_to_target": rounds,
        "bytes_to_target": [None if each is None else each * per_round for each in rounds],
        "final": [stats.final(each) for each in found],
        "final_mean": fmean(stats.final(each) for each in found),
        "final_over_fedavg": stats.difference(
            [stats.final(each) for each in found], [stats.final(each) for each in base]
        ),
        "fewer_rounds_than_fedavg": stats.ratio(counted(found), counted(base)),
    }


def wire(fields: Fields) -> dict[str, int]:
    """Bytes of one training request with its answer, up and down, as the parties of a simulation publish
    them: the request, the model's chunks, the sealed update and all that is said about them."""
    devices = 6
    split = digits.split(devices, 1.0, 0)
    totals = []
    for rounds in (1, 3):
        asked = direct.job_fields(0, rounds=rounds, cohort=devices, deadline_s=86_400.0, **fields)
        learned = simulated.learn(0, split, "half-normal", asked)
        totals.append((learned.up_bytes, learned.down_bytes))
    (up_1, down_1), (up_3, down_3) = totals
    return {"up": (up_3 - up_1) // (2 * devices), "down": (down_3 - down_1) // (2 * devices)}


def _try(
    grid: list[Fields],
    devices: int,
    rounds: int,
    alphas: Sequence[float],
    seeds: Sequence[int],
    spread: Spread,
) -> list[Fields]:
    curves = _curves(grid, devices, rounds, alphas, seeds, spread)
    tried = []
    for index, fields in enumerate(grid):
        found = [curves[index, alpha, seed] for alpha in alphas for seed in seeds]
        ended = [stats.first(each) for each in found]
        means = {"rounds": fmean(rounds if each is None else each for each in ended)}
        means["final"] = fmean(stats.final(each) for each in found)
        tried.append(fields | means)
    return tried


def _best(tried: list[Fields]) -> int:
    final = max(each["final"] for each in tried)
    close = [index for index, each in enumerate(tried) if each["final"] >= final - CLOSE]
    return min(close, key=lambda index: tried[index]["rounds"])


def _curves(
    settings: list[Fields],
    devices: int,
    rounds: int,
    alphas: Sequence[float],
    seeds: Sequence[int],
    spread: Spread,
) -> Curves:
    keys = [(index, alpha, seed) for index in range(len(settings)) for alpha in alphas for seed in seeds]
    found = spread(curve, [(settings[index], devices, rounds, alpha, seed) for index, alpha, seed in keys])
    return dict(zip(keys, found, strict=True))


def curve(fields: Fields, devices: int, rounds: int, alpha: float, seed: int) -> list[float]:
    """Central accuracy of each version of one run."""
    split = digits.split(devices, alpha, seed)
    return direct.accuracies(direct.job(seed, rounds=rounds, **fields), split, seed)
