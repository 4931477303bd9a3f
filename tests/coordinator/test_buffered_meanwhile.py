"""Asynchronous jobs while something else happens: a version is made, a device comes back, a job ends."""

from __future__ import annotations

from coordinator.effects import Commit, Fold
from schemas.events import RequestRef, StateReply, StateRequest
from tests.coordinator.drive import checked, told
from tests.coordinator.test_core_buffered import asynchronous


def test_a_device_that_asks_while_a_version_is_made_goes_on_training() -> None:
    drive = asynchronous("abc", busy=3, cohort=2)
    for device in "ab":
        drive.update(device)
        drive.step(checked(Fold("job", device, 1)))
    assert isinstance(drive.pending[-1], Commit)
    turn = drive.say("c", StateRequest(requests=[RequestRef("job", 1)], key_set=1))
    (reply,) = [event for _, event in told(turn) if isinstance(event, StateReply)]
    assert (reply.requests, reply.closed) == ([RequestRef("job", 1)], [])
