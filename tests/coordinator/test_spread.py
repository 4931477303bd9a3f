"""Means, quantiles and the worst tenth over devices, whatever these claim."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from coordinator.spread import CLAIM_MAX, OWN_SAMPLES_MAX, Told, spread, spreads

NAN = float("nan")


def told(*scores: float, samples: int = 1) -> list[Told]:
    return [Told({"accuracy": score}, samples) for score in scores]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11, 101])
def test_mean_and_quantiles_are_those_of_numpy(count: int) -> None:
    draw = random.Random(count)
    scores = [draw.random() for _ in range(count)]
    weights = [draw.randint(1, 1_000) for _ in range(count)]
    found = spread([Told({"accuracy": s}, w) for s, w in zip(scores, weights, strict=True)], "accuracy")
    assert found is not None
    assert found.mean == pytest.approx(np.average(scores, weights=weights))
    quantiles = (found.low, found.median, found.high)
    assert quantiles == pytest.approx(np.quantile(scores, (0.1, 0.5, 0.9)).tolist())
    assert found.devices == count


def test_the_order_of_devices_changes_no_bit() -> None:
    draw = random.Random(7)
    devices = [Told({"loss": draw.lognormvariate(0, 9)}, draw.randint(1, 10**6)) for _ in range(500)]
    first = spreads(devices)
    draw.shuffle(devices)
    assert spreads(devices) == first


def test_the_worst_tenth_is_the_lowest_of_an_accuracy_and_the_highest_of_a_loss() -> None:
    scores = [number / 20 for number in range(20)]
    found = spread(told(*scores), "accuracy")
    assert found is not None
    assert found.worst == pytest.approx((scores[0] + scores[1]) / 2)
    found = spread([Told({"loss": score}, 1) for score in scores], "loss")
    assert found is not None
    assert found.worst == pytest.approx((scores[-1] + scores[-2]) / 2)


@pytest.mark.parametrize("claimed", [NAN, math.inf, -math.inf, 1.01 * CLAIM_MAX, None])
def test_what_is_no_measurement_is_left_out(claimed: float | None) -> None:
    found = spread([*told(0.5), Told({"accuracy": claimed}, 10**6)], "accuracy")
    assert found is not None
    assert (found.mean, found.devices) == (0.5, 1)
    assert spread([Told({"accuracy": claimed}, 1)], "accuracy") is None


def test_a_metric_counts_by_its_own_samples_where_they_are_told_and_believable() -> None:
    devices = [Told({"accuracy": 1.0, "samples": 30}, 10), Told({"accuracy": 0.0}, 10)]
    found = spreads(devices)
    assert list(found) == ["accuracy"]
    assert found["accuracy"].mean == 0.75
    for claimed in (NAN, -5.0, 0.0):
        devices[0] = Told({"accuracy": 1.0, "samples": claimed}, 10)
        assert spreads(devices)["accuracy"].mean == 0.5
    devices[0] = Told({"accuracy": 1.0, "samples": 1e14}, 10)
    assert spreads(devices)["accuracy"].mean == OWN_SAMPLES_MAX / (OWN_SAMPLES_MAX + 1)
