"""A program that dies at any point of a round loses nothing and doubles nothing: a fifth of all points here,
all of them with `make crash-points`."""

from __future__ import annotations

import pytest

from tests.sim.crash_points import ENDS, KINDS, MORTALS, by_kind, crashed, points

# Of work that was about to be started when the program died.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited:RuntimeWarning")

STRIDE = 5


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("mortal", MORTALS)
def test_whenever_a_program_dies_each_update_counts_once_and_the_log_folds_to_the_model(
    mortal: str, end: str
) -> None:
    seen = points(mortal)
    first = 1 + ENDS.index(end)
    died = [crashed(mortal, at, end) for at in range(first, len(seen) + 1, STRIDE)]
    assert died == seen[first - 1 :: STRIDE], "a run is the same up to the death"
    assert set(by_kind(seen)) == set(KINDS.values())
    assert len(seen) > 150
