"""The learning benches run: with few devices and rounds, so that what they say means nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from schemas.jobs import LocalSettings
from tests.bench import bounds
from tests.bench.learning import digits, direct, simulated, stats, strategies
from tests.bench.learning.delays import MODELS

DEVICES = 6
JOB = {"rounds": 3, "cohort": 4, "min_reports": 4, "over_selection": 1.5, "deadline_s": 1e6}


def test_every_sample_is_held_once_and_none_of_the_test_set() -> None:
    split = digits.split(50, 0.1, 0)
    whole = np.concatenate([split.held_by(range(50)).x, split.test.x])
    assert sorted(map(bytes, whole)) == sorted(map(bytes, digits._digits().x))
    assert len(split.test.y) == 360
    assert min(len(held.y) for held in split.devices) >= digits.SAMPLES_MIN


def test_the_gradient_is_that_of_the_cross_entropy() -> None:
    held = digits.split(DEVICES, 1.0, 0).devices[0]
    model = digits.initial(0)

    def loss(at: int, by: float) -> float:
        moved = model.astype(np.float64)
        moved[at] += by
        weights_1, biases_1, weights_2, biases_2 = digits._views(moved)  # type: ignore[arg-type]  # exactly
        outputs = np.maximum(held.x @ weights_1 + biases_1, 0.0) @ weights_2 + biases_2
        return -float(np.log(digits._softmax(outputs)[np.arange(len(held.y)), held.y]).mean())

    whole = LocalSettings(batch_size=10_000, learning_rate=1.0)
    change, steps = digits.train(model, held, whole, np.random.default_rng(0))
    assert steps == 1
    for at in (5, 700, 2_050, 2_070, 2_300, 2_405):
        assert change[at] == pytest.approx((loss(at, -1e-6) - loss(at, 1e-6)) / 2e-6, abs=1e-5)


def test_steps_max_ends_training() -> None:
    held = digits.split(DEVICES, 1.0, 0).devices[0]
    _, steps = digits.train(digits.initial(0), held, LocalSettings(steps_max=3), np.random.default_rng(0))
    assert steps == 3


def test_rounds_learn_without_a_bus() -> None:
    split = digits.split(DEVICES, 1.0, 0)
    found = direct.accuracies(direct.job(0, rounds=5), split, 0)
    assert len(found) == 6
    assert found[-1] > 0.7


@pytest.mark.parametrize("delay", MODELS)
def test_a_simulated_federation_learns_in_virtual_time(delay: str) -> None:
    split = digits.split(DEVICES, 1.0, 0)
    learned = simulated.learn(0, split, delay, direct.job_fields(0, **JOB))
    assert learned.end == "finished"
    assert (len(learned.models), learned.folded) == (4, 12)
    assert learned.units == sorted(learned.units)
    assert learned.up_bytes > 4 * digits.COUNT * learned.folded
    assert digits.accuracy(learned.models[-1], split.test) > 0.5


def test_simulated_rounds_come_to_what_those_without_a_bus_come_to() -> None:
    """With everybody in every round, the model's way differs by batches and the order of the sum alone."""
    split, fields = digits.split(DEVICES, 1.0, 0), {"rounds": 6, "cohort": DEVICES, "deadline_s": 1e6}
    learned = simulated.learn(0, split, "half-normal", direct.job_fields(0, **fields))
    found = direct.accuracies(direct.job(0, **fields), split, 0)
    assert digits.accuracy(learned.models[0], split.test) == found[0]
    assert digits.accuracy(learned.models[-1], split.test) == pytest.approx(found[-1], abs=0.05)


def test_a_paired_interval_holds_the_mean_and_knows_a_difference_that_all_pairs_show() -> None:
    told = stats.difference([0.95, 0.96, 0.97], [0.9, 0.92, 0.93])
    assert 0 < told["low"] <= told["mean"] <= told["high"]
    assert stats.ratio([1.0, 2.0], [2.0, 4.0]) == pytest.approx({"mean": 2.0, "low": 2.0, "high": 2.0})


def each(settled: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """As `strategies.beside`, in this process."""
    return [settled(*call) for call in calls]


def test_strategies_are_compared() -> None:
    grid = {name: strategies.STRATEGIES[name] for name in ("FedAvg", "FedAdam")}
    result = strategies.measure(DEVICES, 2, [0.5], [0, 1], [100], grid, each)
    assert [row["strategy"] for row in result["rows"]] == ["FedAvg", "FedAdam"]
    assert len(result["tried"]["FedAdam"]) == len(grid["FedAdam"])
    assert result["bytes_of_a_request"]["FedAvg"]["up"] > 4 * digits.COUNT
    assert len(list(bounds.of("strategies", result))) == 1
