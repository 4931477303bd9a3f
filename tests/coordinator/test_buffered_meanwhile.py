"""Asynchronous jobs while something else happens: a version is made, a device comes back, a job ends."""

from __future__ import annotations

from coordinator.effects import Commit, Fold
from schemas.events import RequestRef, StateReply, StateRequest
from schemas.jobs import AsyncSettings
from tests.coordinator.drive import Drive, checked, job_spec, told
from tests.coordinator.test_core_buffered import asynchronous, report


def test_a_device_that_asks_while_a_version_is_made_goes_on_training() -> None:
    drive = asynchronous("abc", busy=3, cohort=2)
    for device in "ab":
        drive.update(device)
        drive.step(checked(Fold("job", device, 1)))
    assert isinstance(drive.pending[-1], Commit)
    turn = drive.say("c", StateRequest(requests=[RequestRef("job", 1)], key_set=1))
    (reply,) = [event for _, event in told(turn) if isinstance(event, StateReply)]
    assert (reply.requests, reply.closed) == ([RequestRef("job", 1)], [])


def test_a_slow_device_is_quarantined_for_as_long_as_a_fast_one() -> None:
    drive = Drive()
    drive.enrol(*"abc")
    buffered = AsyncSettings(concurrency=3)
    drive.submit(
        job_spec(rounds=20, asynchronous=buffered, quarantine_after=1, quarantine_rounds=2, cohort=2)
    )
    drive.settle()
    for device in "ababab":
        report(drive, device)
    drive.update("c")
    drive.step(checked(Fold("job", "c", 1), "finite: NaN"))
    asked = []
    for _ in range(4):
        asked.append("c" in drive.asked())
        for device in "ab":
            report(drive, device)
    assert asked == [False, False, False, True], "the rest of the open buffer, and two more"
