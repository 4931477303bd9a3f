"""A job from its submission to its end, and the key that its devices share."""

from __future__ import annotations

import pytest

from coordinator.facts import RequestsIssued, RoundOpened
from coordinator.inputs import Cancel, Submit, WorkFailed
from coordinator.state import JobState, RequestState
from coordinator.turn import CommandRefused
from schemas.events import JobFinished, Verdict
from tests.coordinator.drive import Drive, job_spec, started, told


def test_a_job_is_finished_after_its_rounds_and_says_so_to_who_took_part() -> None:
    drive = started(("a", "b"))
    for _ in range(2):
        drive.update("a")
        turn = drive.update("b")
        drive.settle()
    job = drive.state.jobs["job"]
    assert (job.state, job.round) == (JobState.FINISHED, None)
    assert [(version.number, version.round) for version in job.versions] == [(0, 0), (1, 1), (2, 2)]
    assert drive.recorded(RoundOpened)[1].base == job.versions[1].model
    turn = drive.tick(1000)
    assert (turn.facts, turn.effects) == ([], [])


def test_in_a_cancelled_job_every_receipted_update_is_rejected_with_its_reason_and_told() -> None:
    drive = started(("a", "b", "c"), cohort=3, min_reports=3)
    drive.update("a")
    drive.settle()
    drive.update("b")
    turn = drive.cancel()
    verdicts = [(device, event) for device, event in told(turn) if isinstance(event, Verdict)]
    assert [(device, verdict.folded, verdict.reason) for device, verdict in verdicts] == [
        ("a", False, "the job was cancelled"),
        ("b", False, "the job was cancelled"),
    ]
    finished = JobFinished(job="job", state="cancelled", version=0)
    assert [item for item in told(turn) if item not in verdicts] == [(name, finished) for name in "abc"]
    drive.settle()
    states = [drive.newest(device).state for device in "abc"]
    assert states == [RequestState.REJECTED, RequestState.REJECTED, RequestState.CLOSED]


def test_a_version_that_was_being_made_when_its_job_was_cancelled_does_not_come_to_be() -> None:
    drive = started(("a", "b"))
    drive.update("a")
    drive.update("b")
    for order in drive.pending[:]:
        outcome = drive.work(order)
        assert outcome is not None
        drive.step(outcome)
    commit = drive.work(drive.pending[-1])
    assert commit is not None
    drive.cancel()
    assert drive.step(commit).facts == []
    assert len(drive.state.jobs["job"].versions) == 1


def test_a_job_whose_initial_model_cannot_be_made_has_failed_and_says_why() -> None:
    drive = Drive()
    drive.submit(job_spec())
    drive.step(WorkFailed(job="job", text="no such task"))
    job = drive.state.jobs["job"]
    assert (job.state, job.reason) == (JobState.FAILED, "no such task")


def test_commands_that_cannot_be_done_are_refused_and_change_nothing() -> None:
    drive = started(("a", "b"))
    with pytest.raises(CommandRefused, match="is a job job already"):
        drive.step(Submit(job="job", spec=job_spec(), parameters=""))
    with pytest.raises(CommandRefused, match="no job other"):
        drive.step(Cancel(job="other"))
    drive.cancel()
    with pytest.raises(CommandRefused, match=r"ended already \(cancelled\)"):
        drive.cancel()
    assert drive.recovered == drive.state


def test_without_a_revocation_the_job_key_stays() -> None:
    drive = started(("a", "b"))
    drive.update("a")
    drive.update("b")
    drive.settle()
    assert [fact.epoch for fact in drive.recorded(RequestsIssued)] == [1, 1]


def test_after_the_revocation_of_who_knows_it_the_job_key_rolls_once() -> None:
    drive = started(("a", "b", "c"), cohort=2)
    drive.revoke(drive.asked()[0])
    for _ in range(2):
        for device in drive.asked():
            drive.update(device)
        drive.settle()
    assert [fact.epoch for fact in drive.recorded(RequestsIssued)] == [1, 2]
    drive = started(("a", "b", "c"), cohort=2)
    (stranger,) = set("abc") - set(drive.asked())
    drive.revoke(stranger)
    for device in drive.asked():
        drive.update(device)
    drive.settle()
    assert [fact.epoch for fact in drive.recorded(RequestsIssued)] == [1, 1], "it never had the key"
