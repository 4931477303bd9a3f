"""The learning benches run: with few devices and rounds, so that what they say means nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from coordinator.state import Job, Request
from schemas.jobs import LocalSettings
from tests.bench import bounds
from tests.bench.learning import (
    asynchronous,
    digits,
    direct,
    fashion,
    nova,
    plots,
    simulated,
    stats,
    strategies,
    uplink,
)
from tests.bench.learning.delays import MODELS
from tests.brokers import require

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
        shares = digits._softmax(digits.outputs(moved, held.x))  # type: ignore[arg-type]  # exactly
        return -float(np.log(shares[np.arange(len(held.y)), held.y]).mean())

    whole = LocalSettings(batch_size=10_000, learning_rate=1.0)
    ((change, steps),) = digits.train(model, [held], [whole], [np.random.default_rng(0)])
    assert steps == 1
    for at in (5, 700, 2_050, 2_070, 2_300, 2_405):
        assert change[at] == pytest.approx((loss(at, -1e-6) - loss(at, 1e-6)) / 2e-6, abs=1e-5)


def test_devices_that_train_together_come_to_what_each_comes_to_alone() -> None:
    held, model = digits.split(DEVICES, 0.3, 0).devices, digits.initial(0)
    local = [LocalSettings(epochs=1 + number % 2, momentum=0.5, batch_size=7) for number in range(DEVICES)]
    local[1] = replace(local[1], steps_max=3)
    together = digits.train(model, held, local, [np.random.default_rng(n) for n in range(DEVICES)])
    for number, (change, steps) in enumerate(together):
        rng = np.random.default_rng(number)
        ((alone, taken),) = digits.train(model, [held[number]], [local[number]], [rng])
        assert steps == taken == local[number].steps(len(held[number].y))
        np.testing.assert_allclose(change, alone, atol=1e-5)


def test_rounds_learn_without_a_bus() -> None:
    split = digits.split(DEVICES, 1.0, 0)
    found = list(direct.accuracies(direct.job(0, rounds=5), direct.Digits(split, 0)))
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


@pytest.mark.parametrize("up", ["float32", "eden1", "topk"])
def test_simulated_rounds_come_to_what_those_without_a_bus_come_to(up: str) -> None:
    """With everybody in every round, the model's way differs by batches, the order of the sum and what
    is drawn in encoding alone."""
    split = digits.split(DEVICES, 1.0, 0)
    fields: dict[str, Any] = {"rounds": 6, "cohort": DEVICES, "deadline_s": 1e6}
    fields |= {"compression": {"up": up, "fraction": 0.1}}
    learned = simulated.learn(0, split, "half-normal", direct.job_fields(0, **fields))
    found = list(direct.accuracies(direct.job(0, **fields), direct.Digits(split, 0)))
    assert digits.accuracy(learned.models[0], split.test) == found[0]
    assert digits.accuracy(learned.models[-1], split.test) == pytest.approx(found[-1], abs=0.05)


def test_a_paired_interval_holds_the_mean_and_knows_a_difference_that_all_pairs_show() -> None:
    told = stats.difference([0.95, 0.96, 0.97], [0.9, 0.92, 0.93])
    assert 0 < told["low"] <= told["mean"] <= told["high"]
    assert stats.ratio([1.0, 2.0], [2.0, 4.0]) == pytest.approx({"mean": 2.0, "low": 2.0, "high": 2.0})


def each(settled: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """As `strategies.beside`, in this process."""
    return [settled(*call) for call in calls]


def test_strategies_are_compared(tmp_path: Path) -> None:
    grid = {name: strategies.STRATEGIES[name] for name in ("FedAvg", "FedAdam")}
    plan = strategies.Plan(devices=DEVICES, rounds=2, alphas=[0.5], seeds=[0, 1], tuned_on=[100])
    result = strategies.measure(plan, grid, each)
    plots.strategies(result, tmp_path / "strategies.png")
    assert [row["strategy"] for row in result["rows"]] == ["FedAvg", "FedAdam"]
    assert len(result["tried"]["FedAdam"]) == len(grid["FedAdam"])
    assert result["bytes_of_a_request"]["FedAvg"]["up"] > 4 * digits.COUNT
    assert len(list(bounds.of("strategies", result))) == 1


def test_devices_with_other_numbers_of_local_steps_are_compared(tmp_path: Path) -> None:
    plan = strategies.Plan(devices=DEVICES, rounds=2, alphas=[0.5], seeds=[0], tuned_on=[100])
    result = nova.measure(plan, each)
    plots.nova(result, tmp_path / "nova.png")
    assert [tuple(each["plan"]["steps"]) for each in result["ranges"]] == list(nova.RANGES)


def test_encodings_are_compared(tmp_path: Path) -> None:
    plan = strategies.Plan(
        devices=DEVICES, rounds=2, alphas=[0.5], seeds=[0, 1], tuned_on=[100], hidden=1_400
    )
    result = uplink.measure(plan, each)
    plots.uplink(result, tmp_path / "bytes.png")
    assert [row["strategy"] for row in result["rows"]] == list(uplink.ENCODINGS)
    assert result["bytes_of_a_request"]["float32"]["up"] > 4 * 105_010
    assert set(result["tried"]) == {"eden1", "topk"}
    assert len(list(bounds.of("bytes", result))) == 4


def test_what_top_k_leaves_out_of_a_change_comes_later() -> None:
    state = Job("job", direct.job(0, compression={"up": "topk", "fraction": 0.25}), "", 0.0)
    travel, out, come = direct._Travel(state, 8), np.empty(8, np.float32), np.zeros(8, np.float32)
    change = np.arange(1, 9, dtype=np.float32)
    for round_ in range(1, 21):
        travel.arrive(Request("d00", round_, round_, b""), change, out)
        assert np.count_nonzero(out) == 2
        come += out
    np.testing.assert_allclose(come + travel._left_out["d00"], 20 * change)


def test_times_are_compared(tmp_path: Path) -> None:
    plan = asynchronous.Plan(devices=DEVICES, updates=8, alphas=[0.5], seeds=[0], tuned_on=[100])
    sides: dict[str, list[dict[str, Any]]] = {
        "patient": [{"cohort": 4}],
        "hasty": [{"cohort": 2, "asynchronous": {"concurrency": 4}}],
    }
    result = asynchronous.measure(plan, sides, each)
    plots.asynchronous(result, tmp_path / "asynchronous.png")
    assert [row["delay"] for row in result["rows"]] == list(MODELS)
    for row in result["rows"]:
        assert row["hasty"]["folded"] == [8]
        assert row["hasty"]["units"][0][-1] < row["patient"]["units"][0][-1]
        assert ("slow_over_first" in row) == (row["delay"] != "half-normal")


@pytest.mark.slow
@pytest.mark.timeout(600)  # loads PyTorch, and all the images
def test_fashion_is_learned_by_the_task_that_ships(tmp_path: Path) -> None:
    require("dataset-fashion-mnist")
    result = fashion.measure(fashion.Plan(devices=3, rounds=1, seeds=[0], samples=600))
    plots.fashion(result, tmp_path / "fashion.png")
    assert [len(curve) for curve in (*result["federated"], result["centralised"])] == [2, 2]
    assert result["centralised"][-1] > 0.3
    assert len(list(bounds.of("fashion", result))) == 1
