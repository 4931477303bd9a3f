"""Median, trimmed mean and multi-Krum have numpy's and the papers' results, however the blocks are cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.strategies import Told, aggregation
from coordinator.strategies.robust import PIECE
from schemas.errors import JobRefused
from schemas.jobs import ServerSettings, parse_job, trimmed
from tests.standin import spec

Floats = NDArray[np.float64]
Updates32 = NDArray[np.float32]
COUNTS = st.sampled_from([1, 7, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
SEEDS = st.integers(0, 2**32)


@dataclass
class Held:
    """Updates in memory, cut into blocks of ``pieces`` pieces."""

    changes: Updates32
    scales: Floats
    pieces: int = 1

    def blocks(self) -> Iterator[tuple[int, Updates32]]:
        width = self.pieces * PIECE
        for start in range(0, self.changes.shape[1], width):
            yield start, self.changes[:, start : start + width].copy()


def changes_of(seed: int, updates: int, count: int) -> Updates32:
    """With ties, zeros of both signs, and very different sizes."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((updates, count)) * 10.0 ** rng.integers(-6, 6, count)
    made[rng.random(made.shape) < 0.2] = 0.0
    made[rng.random(made.shape) < 0.1] *= -0.0
    return made.astype("<f4")


def result(changes: Updates32, scales: Floats | None = None, pieces: int = 1, **server: Any) -> Floats:
    return told(changes, scales, pieces, **server)[0]


def told(
    changes: Updates32, scales: Floats | None = None, pieces: int = 1, **server: Any
) -> tuple[Floats, Told]:
    rule = aggregation(msgspec.convert(server, ServerSettings))
    assert rule is not None
    out = np.full(changes.shape[1], np.nan)
    held = Held(changes, np.ones(len(changes)) if scales is None else scales, pieces)
    return out, rule(held, out)


@settings(max_examples=40)
@given(seed=SEEDS, updates=st.integers(1, 12), count=COUNTS)
def test_the_median_is_numpys(seed: int, updates: int, count: int) -> None:
    changes = changes_of(seed, updates, count)
    wanted = np.median(changes.astype(np.float64), axis=0)
    assert (result(changes, aggregation="median") == wanted).all()


@settings(max_examples=40)
@given(seed=SEEDS, updates=st.integers(1, 12), count=COUNTS, trim=st.floats(0.0, 0.49))
def test_the_trimmed_mean_is_numpys_mean_of_what_sorting_leaves(
    seed: int, updates: int, count: int, trim: float
) -> None:
    changes = changes_of(seed, updates, count)
    out = trimmed(trim, updates)
    left = np.sort(changes.astype(np.float64), axis=0)[out : updates - out]
    largest = np.abs(left).max(axis=0)
    found = result(changes, aggregation="trimmed_mean", trim=trim)
    assert (np.abs(found - left.mean(axis=0)) <= 1e-14 * largest).all()


def test_a_part_of_a_round_is_what_people_take_it_for() -> None:
    assert [trimmed(0.1, 30), trimmed(0.2, 5), trimmed(0.29, 100), trimmed(0.2, 4)] == [3, 1, 29, 0]


def naive_krum(changes: Updates32, byzantine: int) -> tuple[Floats, list[int]]:
    """As the paper says it, over whole vectors."""
    exact, count = changes.astype(np.float64), len(changes)
    scores = []
    for one in range(count):
        squares = [float(((exact[one] - exact[other]) ** 2).sum()) for other in range(count) if other != one]
        scores.append(sum(sorted(squares)[: count - byzantine - 2]))
    chosen = sorted(np.argsort(scores, kind="stable")[: count - byzantine].tolist())
    return exact[chosen].mean(axis=0), chosen


@settings(max_examples=30)
@given(seed=SEEDS, byzantine=st.integers(1, 3), more=st.integers(0, 5), count=COUNTS)
def test_multi_krum_is_the_naive_one(seed: int, byzantine: int, more: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    updates = 2 * byzantine + 3 + more
    changes = rng.standard_normal((updates, count)).astype("<f4")
    changes[:byzantine] *= 5
    wanted, chosen = naive_krum(changes, byzantine)
    found, what = told(changes, aggregation="multi_krum", byzantine=byzantine)
    assert sorted(set(range(updates)) - set(what.left_out)) == chosen
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


RULES: list[dict[str, Any]] = [
    {"aggregation": "median"},
    {"aggregation": "trimmed_mean", "trim": 0.25},
    {"aggregation": "multi_krum", "byzantine": 2},
]


@pytest.mark.parametrize("server", RULES)
def test_however_blocks_are_cut_the_bits_are_the_same(server: dict[str, Any]) -> None:
    changes, scales = changes_of(3, 9, 5 * PIECE + 3), np.linspace(0.1, 1.0, 9)
    first, told_first = told(changes, scales, **server)
    for pieces in (2, 3, 8):
        found, what = told(changes, scales, pieces, **server)
        assert found.tobytes() == first.tobytes()
        assert what == told_first


@pytest.mark.parametrize("server", RULES)
def test_two_of_nine_cannot_move_a_round_far_however_far_they_go(server: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    changes = (1.0 + 0.1 * rng.standard_normal((9, 50))).astype("<f4")
    for size in (1e3, 1e15):
        changes[[2, 6]] = -size
        found, what = told(changes, **server)
        assert np.abs(found - 1.0).max() < 0.3
        assert max(what.cosines[2], what.cosines[6]) < -0.9
        assert min(what.cosines[at] for at in range(9) if at not in (2, 6)) > 0.9
        if server["aggregation"] == "multi_krum":
            assert what.left_out == [2, 6]


def test_a_clipped_change_counts_as_scaled() -> None:
    changes = np.array([[8.0], [2.0], [1.0]], "<f4")
    assert result(changes, np.array([0.25, 1.0, 1.0]), aggregation="median") == [2.0]
    assert result(changes, np.array([0.125, 1.0, 1.0]), aggregation="median") == [1.0]


def test_the_median_of_zeros_has_no_sign_whatever_their_order() -> None:
    changes = np.array([[-0.0], [0.0], [-0.0]], "<f4")
    assert not np.signbit(result(changes, aggregation="median")).any()


def test_cosines_are_numpys_and_0_beside_nothing() -> None:
    changes = changes_of(9, 5, 2 * PIECE)
    changes[1] = 0.0
    mean, what = told(changes, aggregation="median")
    exact = changes.astype(np.float64)
    sizes = np.linalg.norm(exact, axis=1) * np.linalg.norm(mean)
    wanted = [inner / size if size else 0.0 for inner, size in zip(exact @ mean, sizes, strict=True)]
    assert what.cosines == pytest.approx(wanted, abs=1e-12)
    assert what.cosines[1] == 0.0


@pytest.mark.parametrize(
    ("server", "job", "text"),
    [
        ({"aggregation": "median"}, {"min_reports": 2}, "needs at least 3 updates .* min_reports is 2"),
        (
            {"aggregation": "trimmed_mean", "trim": 0.1},
            {"min_reports": 9},
            "trim 0.1 needs at least 10 updates",
        ),
        (
            {"aggregation": "multi_krum", "byzantine": 4},
            {"min_reports": 10},
            "byzantine 4 needs at least 11 updates",
        ),
        ({"aggregation": "median", "normalised": True}, {"min_reports": 3}, "leave one of them out"),
        (
            {"aggregation": "multi_krum"},
            {"min_reports": 5, "cohort": 900, "over_selection": 1.2},
            "lower cohort",
        ),
    ],
)
def test_a_job_in_which_a_rule_cannot_work_is_refused_with_the_remedy(
    server: dict[str, Any], job: dict[str, Any], text: str
) -> None:
    with pytest.raises(JobRefused, match=text):
        parse_job(spec(cohort=20, server=server) | job)


@pytest.mark.parametrize("server", RULES)
def test_with_as_many_reports_as_the_refusal_names_it_is_taken(server: dict[str, Any]) -> None:
    reports = msgspec.convert(server, ServerSettings).reports_min
    assert parse_job(spec(cohort=20, min_reports=reports, server=server)).server.aggregation != "mean"
