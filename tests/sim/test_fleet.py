"""Fleets with every fault at once: some seeds of what `make sim` plays by the thousand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.seeds import DEVICES_MIN, FOLDS_MIN, VERSIONS_MIN, WANTED, Played, play

# Of work that was about to be started when the program died.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited:RuntimeWarning")

SEEDS = 10
ROOT = Path(__file__).resolve().parent.parent.parent
DIGEST = "from tests.sim.pool import quiet; quiet(); from tests.sim.seeds import play; print(play(1).digest)"
_played: dict[int, Played] = {}


def played(seed: int) -> Played:
    """A seed is played once, for all tests."""
    if seed not in _played:
        _played[seed] = play(seed)
    return _played[seed]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_befalls_a_fleet_nothing_receipted_is_lost_and_all_ends(seed: int) -> None:
    one = played(seed)
    assert not one.problem, "\n".join((one.problem, *one.trace))
    assert one.devices >= DEVICES_MIN
    assert one.versions >= VERSIONS_MIN
    assert one.folds >= FOLDS_MIN


def test_every_kind_of_fault_comes() -> None:
    faults: Counter[str] = sum((played(seed).faults for seed in range(SEEDS)), Counter())
    others = ("crash", "torn write", "failed write", "full disk", "clock jump", "lie")
    assert [kind for kind in (*WANTED, *others) if not faults[kind]] == []


def test_a_seed_is_the_same_in_another_process() -> None:
    environment = os.environ | {"PYTHONHASHSEED": "17", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DIGEST]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == played(1).digest != ""
