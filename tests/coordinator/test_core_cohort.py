"""A cohort is a seeded draw of devices that may be asked: the same everywhere, and within its bounds."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from coordinator.cohort import eligible, select
from coordinator.state import Job
from tests.coordinator.drive import Drive, job_spec, status

ROOT = Path(__file__).resolve().parents[2]
DEVICES = [f"device-{number}" for number in range(40)]
DRAW = """
from coordinator.cohort import select
from coordinator.state import Job
from schemas.jobs import JobSpec
spec = JobSpec(name="job", task="vision", cohort=10, over_selection=1.3, seed=7)
job = Job("job", spec, "", 0.0)
print(*select(job, 3, 1, [f"device-{number}" for number in range(40)], 10))
"""


def job(over_selection: float = 1.0, name: str = "job") -> Job:
    return Job(name, job_spec(name, cohort=10, min_reports=1, over_selection=over_selection), "", 0.0)


def drawn_elsewhere(hash_seed: str) -> str:
    env = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", DRAW], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    )
    return done.stdout


@given(
    candidates=st.lists(st.sampled_from(DEVICES), unique=True).map(sorted),
    wanted=st.integers(1, 50),
    over_selection=st.floats(1, 10),
    round_=st.integers(1, 1000),
    attempt=st.integers(0, 1000),
)
def test_a_cohort_is_drawn_from_the_candidates_each_once_and_within_bounds(
    candidates: list[str], wanted: int, over_selection: float, round_: int, attempt: int
) -> None:
    cohort = select(job(over_selection), round_, attempt, candidates, wanted)
    assert cohort == sorted(set(cohort) & set(candidates))
    assert len(cohort) == min(len(candidates), math.ceil(wanted * over_selection))
    assert cohort == select(job(over_selection), round_, attempt, candidates, wanted)


def test_jobs_rounds_and_attempts_draw_differently() -> None:
    draws = [
        tuple(select(job(), 1, 0, DEVICES, 10)),
        tuple(select(job(), 2, 0, DEVICES, 10)),
        tuple(select(job(), 1, 5, DEVICES, 10)),
        tuple(select(job(name="other"), 1, 0, DEVICES, 10)),
    ]
    assert len(set(draws)) == len(draws)


def test_over_many_rounds_every_device_gets_its_turn() -> None:
    seen = {device for round_ in range(60) for device in select(job(), round_, 0, DEVICES, 10)}
    assert seen == set(DEVICES)


def test_the_draw_does_not_depend_on_the_process_or_its_hash_seed() -> None:
    assert drawn_elsewhere("1") == drawn_elsewhere("2")
    assert len(drawn_elsewhere("3").split()) == 13


def test_who_is_not_active_or_has_not_the_task_is_not_asked() -> None:
    drive = Drive()
    drive.enrol("a", "b", "c", "d")
    drive.say("b", status("timeseries"))
    drive.revoke("c")
    drive.join(drive.invite("joined"), "joined")
    drive.join(drive.invite("silent"), "silent")
    drive.prove("silent")
    found = drive.submit(job_spec(cohort=10))
    assert eligible(drive.state, found) == ["a", "d"]
