"""Server optimisers have the bits of their papers' formulas, block by block, and steps known by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.strategies import begun, digest_of, server_optimiser
from schemas.errors import JobRefused
from schemas.jobs import ServerSettings, parse_job
from tests.standin import spec

Floats = NDArray[np.float64]
Names = st.sampled_from(["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
RATES: dict[str, Any] = {"learning_rate": 0.5, "beta_1": 0.8, "beta_2": 0.75, "tau": 0.01}
SECOND: dict[str, Callable[[Floats, Floats], Floats]] = {
    "fedadagrad": lambda v, square: v + square,
    "fedadam": lambda v, square: 0.75 * v + 0.25 * square,
    "fedyogi": lambda v, square: v - 0.25 * square * np.sign(v - square),
}


def named(name: str, **changed: Any) -> ServerSettings:
    return msgspec.convert({"optimiser": name} | RATES | changed, ServerSettings)


def stepped(settings: ServerSettings, means: list[Floats]) -> list[Floats]:
    """The step of each round, with what is kept rounded to float32 in between, as in files."""
    optimiser, steps = server_optimiser(settings), []
    moments = begun(optimiser, len(means[0]))
    for mean in means:
        step, kept = mean.copy(), moments.astype(np.float64)
        optimiser.step(step, kept)
        moments[:] = kept
        steps.append(step)
    return steps


def test_fedavg_with_rate_1_moves_by_the_mean_itself() -> None:
    mean = np.array([0.1, -3.0, 0.0])
    assert (stepped(ServerSettings(), [mean])[0] == mean).all()
    assert (stepped(named("fedavg"), [mean])[0] == 0.5 * mean).all()


def test_fedavgm_adds_up_what_momentum_keeps() -> None:
    one = np.array([1.0, -2.0])
    first, second, third = stepped(named("fedavgm"), [one, one, 0 * one])
    assert first == pytest.approx(0.5 * one)
    assert second == pytest.approx(0.5 * (1 + 0.8) * one)
    assert third == pytest.approx(0.5 * 0.8 * (1 + 0.8) * one)


@pytest.mark.parametrize("name", SECOND)
def test_the_adaptive_ones_follow_algorithm_2(name: str) -> None:
    rng = np.random.default_rng(3)
    means = [rng.normal(0, scale, 50) for scale in (1.0, 0.001, 3.0, 0.0)]
    m, v = np.zeros(50), np.full(50, 0.01**2)
    for mean, step in zip(means, stepped(named(name), means), strict=True):
        m, v = 0.8 * m + 0.2 * mean, SECOND[name](v, mean * mean)
        assert step == pytest.approx(0.5 * m / (np.sqrt(v) + 0.01), rel=1e-5, abs=1e-12)


def test_known_steps_of_one_coordinate() -> None:
    """Δ is 0.03 and v begins with 0.0001, so the squares are 0.0009."""
    mean = np.array([0.03])
    by_hand = {"fedadagrad": 0.0001 + 0.0009, "fedadam": 0.75 * 0.0001 + 0.25 * 0.0009}
    by_hand["fedyogi"] = 0.0001 + 0.25 * 0.0009  # v is below Δ², so it grows
    for name, second in by_hand.items():
        (step,) = stepped(named(name), [mean])
        assert step[0] == pytest.approx(0.5 * 0.2 * 0.03 / (second**0.5 + 0.01), rel=1e-6)


@given(name=Names, seed=st.integers(0, 2**32), count=st.integers(1, 40), cut=st.integers(0, 40))
def test_a_step_is_the_same_in_blocks_of_any_size(name: str, seed: int, count: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    means = [rng.normal(0, 10.0 ** rng.integers(-8, 4), count) for _ in range(3)]
    whole, cut = stepped(named(name), means), min(cut, count)
    parts = [stepped(named(name), [mean[part] for mean in means]) for part in (slice(cut), slice(cut, count))]
    for round_, step in enumerate(whole):
        assert np.concatenate([part[round_] for part in parts]).tobytes() == step.tobytes()


@given(name=Names, mean=st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=5))
def test_steps_are_finite_and_go_no_other_way_than_the_mean(name: str, mean: list[float]) -> None:
    (step,) = stepped(named(name), [np.array(mean)])
    assert np.isfinite(step).all()
    assert (step * np.array(mean) >= 0).all()


def test_what_keeps_nothing_has_no_digest() -> None:
    assert digest_of(begun(server_optimiser(named("fedavg")), 3)) == b""
    assert len(digest_of(begun(server_optimiser(named("fedavgm")), 3))) == 32


def test_the_rate_that_holds_without_one_is_the_optimisers() -> None:
    rates = {name: msgspec.convert({"optimiser": name}, ServerSettings).rate for name in ("fedavgm", *SECOND)}
    assert rates == {"fedavgm": 1.0} | dict.fromkeys(SECOND, 0.1)


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"optimiser": "adam"}, "server.optimiser 'adam' is none of fedavg, fedavgm, fedadagrad"),
        ({"optimiser": ""}, "`$.server.optimiser`"),
        ({"tau": 0.0}, "`$.server.tau`"),
        ({"beta": 0.9}, "`beta`"),
    ],
)
def test_a_wrong_field_is_refused_with_its_name(server: dict[str, Any], told: str) -> None:
    with pytest.raises(JobRefused, match=told.replace("$", r"\$")):
        parse_job(spec(server=server))
