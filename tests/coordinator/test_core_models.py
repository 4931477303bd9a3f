"""Who gets a job's newest model, and under which key: those who were asked to train it, nobody else."""

from __future__ import annotations

import pytest

from coordinator.effects import SendModel
from schemas.events import ModelRequest, Refusal, Revoked
from schemas.ids import model_request_id
from tests.coordinator.drive import Drive, ordered, started, told


def finished() -> Drive:
    """A job of two rounds by ``a`` and ``b``; ``c`` came after it."""
    drive = started(("a", "b"))
    for _ in range(2):
        drive.update("a")
        drive.update("b")
        drive.settle()
    drive.enrol("c")
    return drive


def test_the_newest_model_is_offered_to_who_was_asked_while_the_job_runs_and_after_it() -> None:
    running = started(("a", "b"))
    assert ordered(running.say("a", ModelRequest(job="job")), SendModel) == [
        SendModel("a", "job", 0, "running", 1)
    ]
    ended = finished()
    assert ordered(ended.say("b", ModelRequest(job="job")), SendModel) == [
        SendModel("b", "job", 2, "finished", 1)
    ]
    ended.restart()
    assert ordered(ended.say("b", ModelRequest(job="job")), SendModel) == [
        SendModel("b", "job", 2, "finished", 1)
    ]


@pytest.mark.parametrize(("device", "job"), [("c", "job"), ("a", "other")])
def test_a_model_of_a_job_that_the_device_was_never_asked_to_train_is_refused_by_name(
    device: str, job: str
) -> None:
    turn = finished().say(device, ModelRequest(job=job))
    ((to, refusal),) = told(turn)
    assert isinstance(refusal, Refusal)
    assert (to, refusal.code, refusal.transfer) == (device, "closed", model_request_id(job))
    assert ordered(turn, SendModel) == []


def test_a_revoked_device_gets_no_model() -> None:
    drive = finished()
    drive.revoke("a")
    turn = drive.say("a", ModelRequest(job="job"))
    assert [type(event) for _, event in told(turn)] == [Revoked]
    assert ordered(turn, SendModel) == []


def test_the_last_version_is_offered_under_no_key_that_a_revoked_device_knows() -> None:
    drive = finished()
    drive.revoke("a")
    assert ordered(drive.say("b", ModelRequest(job="job")), SendModel) == [
        SendModel("b", "job", 2, "finished", 2)
    ]
