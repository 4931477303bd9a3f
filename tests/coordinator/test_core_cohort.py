"""A cohort is a seeded draw of devices that may be asked: the same everywhere, and within its bounds."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from coordinator.cohort import eligible, select
from coordinator.state import Device, Job, Request, RequestState
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


def fleet(selection: str, samples: list[int], cores: list[int]) -> tuple[Job, dict[str, Device], list[str]]:
    """A job and its devices, each with so many samples and cores."""
    spec = replace(job_spec(cohort=1), selection=selection, dataset="data")
    names = [f"d{number:02}" for number in range(len(samples))]
    devices = {
        name: Device(name, "acme", b"", b"", b"", status=replace(status(), cores=c, samples={"data": s}))
        for name, s, c in zip(names, samples, cores, strict=True)
    }
    return Job("job", spec, "", 0.0), devices, names


def shares(job: Job, devices: dict[str, Device], names: list[str], wanted: int = 1) -> list[float]:
    """How often each was drawn, in 4000 rounds."""
    drawn = Counter(
        name for round_ in range(4_000) for name in select(job, round_, 0, names, wanted, devices)
    )
    return [drawn[name] / 4_000 for name in names]


# A share's standard error is below 0.008: the 0.04 below are five of them. The draws are seeded besides.
def test_by_samples_a_device_is_drawn_as_often_as_it_has_samples() -> None:
    found = shares(*fleet("samples", [100, 200, 300, 400], [1, 1, 1, 1]))
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.04)


def test_two_are_drawn_one_after_the_other_by_what_is_left() -> None:
    found = shares(*fleet("samples", [100, 100, 200], [1, 1, 1]), wanted=2)
    # The third comes first (1/2), or second behind one of the others (1/2 of 2/3).
    assert found == pytest.approx([7 / 12, 7 / 12, 5 / 6], abs=0.04)


def test_who_tells_no_samples_counts_as_the_usual_device() -> None:
    found = shares(*fleet("samples", [100, 300, 0], [1, 1, 1]))
    assert found == pytest.approx([1 / 6, 3 / 6, 2 / 6], abs=0.04)


def test_what_a_device_claims_does_not_leave_the_others_out() -> None:
    found = shares(*fleet("samples", [100] * 20 + [2**60], [1] * 21))
    assert found[-1] == pytest.approx(100 / 120, abs=0.04)


def test_by_capability_cores_count_first_and_then_what_was_trained_per_second() -> None:
    job, devices, names = fleet("capability", [1, 1], [1, 3])
    assert shares(job, devices, names) == pytest.approx([0.25, 0.75], abs=0.04)
    for name, number, train_s in (("d00", 1, 90.0), ("d00", 2, 10.0), ("d01", 1, 40.0)):
        request = Request(name, number, number, b"", RequestState.FOLDED, samples=100, train_s=train_s)
        job.requests[name, number] = request
    assert shares(job, devices, names) == pytest.approx([0.8, 0.2], abs=0.04)


def test_a_uniform_draw_is_what_it_always_was() -> None:
    job, devices, names = fleet("uniform", [1, 1000], [1, 64])
    assert select(job, 1, 0, names, 1, devices) == select(job, 1, 0, names, 1)
    assert drawn_elsewhere("0").split() == sorted(random.Random("job:7:3:1").sample(DEVICES, 13))
