"""Rounds come to an end, whatever devices and operators do: by example."""

from __future__ import annotations

import pytest

from coordinator.effects import Commit, Fold, Prepare, SendRequest
from coordinator.facts import RequestsIssued, RoundClosed, RoundExtended, RoundOpened
from coordinator.rounds import next_deadline_run_s
from coordinator.state import RequestState
from schemas.events import Accept, Decline
from tests.coordinator.drive import Drive, job_spec, ordered, started, status

FIVE = ("a", "b", "c", "d", "e")


def decline(drive: Drive, device: str, reason: str = "busy") -> None:
    number = drive.newest(device).number
    drive.say(device, Decline(job="job", request=number, reason=reason, text="not now"))


def closings(drive: Drive) -> list[str]:
    return [fact.reason for fact in drive.recorded(RoundClosed)]


def rounds_done(drive: Drive) -> int:
    return drive.state.jobs["job"].rounds_done


def test_a_round_closes_when_the_cohort_has_reported_though_more_were_asked() -> None:
    drive = started(cohort=3, over_selection=1.3)
    asked = drive.asked()
    assert len(asked) == 4
    for device in asked[:3]:
        assert rounds_done(drive) == 0
        drive.update(device)
        drive.settle()
    assert closings(drive) == ["the cohort has reported"]
    assert rounds_done(drive) == 1


def test_at_the_deadline_a_round_closes_with_enough_reports() -> None:
    drive = started(cohort=3, min_reports=2)
    one, two, _ = drive.asked()
    drive.update(one)
    drive.update(two)
    drive.settle()
    drive.tick(99.9)
    assert closings(drive) == []
    drive.tick(0.1)
    drive.settle()
    assert closings(drive) == ["the deadline has passed"]
    assert rounds_done(drive) == 1


def test_at_the_deadline_a_round_with_too_few_reports_asks_others_and_goes_on() -> None:
    drive = started(cohort=3, min_reports=2)
    first = drive.asked()
    drive.update(first[0])
    drive.settle()
    drive.tick(100)
    drive.settle()
    (extended,) = drive.recorded(RoundExtended)
    assert extended.devices == sorted(set(FIVE) - set(first)), "two are wanted, and were not asked yet"
    assert extended.deadline_run_s == drive.run_s + 100
    drive.update(extended.devices[0])
    drive.settle()
    assert rounds_done(drive) == 0, "others may still report"
    drive.tick(100)
    drive.settle()
    assert closings(drive) == ["the deadline has passed"]
    assert drive.count(RequestState.FOLDED) == 0, "the next round begins with none"


def test_what_was_folded_before_an_extension_stays_counted() -> None:
    drive = started(cohort=2, min_reports=2)
    drive.update(drive.asked()[0])
    drive.settle()
    drive.tick(100)
    drive.settle()
    drive.update(drive.asked()[-1])
    drive.settle()
    assert closings(drive) == ["the cohort has reported"]


def test_a_round_that_nobody_else_can_join_is_given_time_again_and_again() -> None:
    drive = started(("a", "b"), cohort=2, min_reports=2)
    drive.update("a")
    drive.settle()
    for count in (1, 2, 3):
        drive.tick(100)
        drive.settle()
        assert len(drive.recorded(RoundExtended)) == count
    drive.update("b")
    drive.settle()
    assert rounds_done(drive) == 1


def test_when_all_decline_others_are_asked_at_the_deadline() -> None:
    drive = started(cohort=2)
    first = drive.asked()
    for device in first:
        decline(drive, device, "policy")
    assert closings(drive) == []
    drive.tick(100)
    drive.settle()
    assert len(drive.asked()) == 2
    assert not set(drive.asked()) & set(first)


def test_when_all_others_declined_the_round_closes_with_what_it_has() -> None:
    drive = started(cohort=3, min_reports=1)
    one, two, three = drive.asked()
    drive.update(one)
    drive.settle()
    decline(drive, two)
    assert closings(drive) == []
    decline(drive, three)
    assert closings(drive) == ["everybody asked has answered"]


def test_a_request_can_be_declined_after_it_was_accepted() -> None:
    drive = started(("a", "b"))
    drive.say("a", Accept(job="job", request=1))
    assert drive.newest("a").state is RequestState.ACCEPTED
    decline(drive, "a", "worker")
    assert drive.newest("a").state is RequestState.DECLINED
    assert drive.newest("a").reason == "worker: not now"


@pytest.mark.parametrize("reason", ["policy", "data", "task"])
def test_who_declined_for_good_is_not_asked_again_until_it_reports_again(reason: str) -> None:
    drive = started(("a", "b"), cohort=2, min_reports=2)
    decline(drive, "a", reason)
    drive.tick(100)
    drive.settle()
    assert drive.newest("a").number == 1
    drive.say("a", status())  # the same as before: its owner may have mended what was wrong
    drive.tick(100)
    drive.settle()
    assert (drive.newest("a").number, drive.asked()) == (2, ["a", "b"])


def test_who_was_only_busy_is_asked_again() -> None:
    drive = started(("a", "b"), cohort=2, min_reports=2)
    decline(drive, "a", "busy")
    drive.tick(100)
    drive.settle()
    assert drive.asked() == ["a", "b"]


def test_the_first_round_waits_for_the_whole_cohort() -> None:
    drive = started(("a", "b"), cohort=3, min_reports=1)
    assert drive.recorded(RoundOpened) == []
    drive.tick(99)
    assert drive.recorded(RoundOpened) == []
    drive.enrol("c")
    assert [fact.cohort for fact in drive.recorded(RoundOpened)] == [["a", "b", "c"]]


def test_the_first_round_waits_no_longer_than_a_round_may_last() -> None:
    drive = started(("a", "b"), cohort=3, min_reports=1)
    drive.tick(100)
    assert [fact.cohort for fact in drive.recorded(RoundOpened)] == [["a", "b"]]


def test_a_round_opens_when_the_one_device_it_lacks_comes() -> None:
    drive = started((), cohort=2, min_reports=1)
    drive.tick(500)
    assert drive.recorded(RoundOpened) == []
    drive.enrol("a")
    assert [fact.cohort for fact in drive.recorded(RoundOpened)] == [["a"]]


def test_requests_that_were_being_prepared_at_a_revocation_go_out_under_the_next_key() -> None:
    drive = started(("a", "b", "c"), cohort=3)
    for device in "abc":
        drive.update(device)
    while not any(isinstance(order, Prepare) for order in drive.pending):
        outcome = drive.work(drive.pending.pop(0))
        assert outcome is not None
        drive.step(outcome)
    drive.revoke("a")
    drive.settle()
    assert [fact.epoch for fact in drive.recorded(RequestsIssued)] == [1, 2]
    assert drive.asked() == ["b", "c"]


def test_keys_that_were_made_twice_are_issued_once() -> None:
    drive = Drive()
    drive.enrol("a", "b")
    drive.submit(job_spec())
    while not any(isinstance(order, Prepare) for order in drive.pending):
        outcome = drive.work(drive.pending.pop(0))
        assert outcome is not None
        drive.step(outcome)
    (order,) = drive.pending
    first, second = drive.work(order), drive.work(order)
    assert first is not None
    assert second is not None
    assert len(ordered(drive.step(first), SendRequest)) == 2
    for late in (first, second):
        assert drive.step(late).facts == []
    decline(drive, "a")
    decline(drive, "b")
    drive.tick(100)
    assert drive.step(first).facts == [], "the same devices are asked, but not with keys that were used"
    drive.settle()
    assert drive.step(first).facts == []
    assert [fact.requests[0].number for fact in drive.recorded(RequestsIssued)] == [1, 2]


def test_after_a_restart_everything_without_an_outcome_is_ordered_again() -> None:
    drive = started(("a", "b", "c"), cohort=3)
    drive.say("b", Accept(job="job", request=1))
    drive.update("c")
    before = drive.pending[:]
    turn = drive.restart()
    assert drive.pending == before
    assert [effect.device for effect in ordered(turn, SendRequest)] == ["a"], "b has it durably"


def test_after_a_restart_a_closed_round_is_folded_and_committed_again_and_counts_once() -> None:
    drive = started(("a", "b"))
    for device in "ab":
        drive.update(device)
        outcome = drive.work(drive.pending[-1])
        assert outcome is not None
        drive.step(outcome)
    drive.restart()
    assert drive.pending == [Fold("job", "a", 1), Fold("job", "b", 1), Commit("job", 1)]
    commit = drive.work(drive.pending[-1])
    drive.settle()
    assert commit is not None
    assert drive.step(commit).facts == [], "it came a second time"
    assert [version.number for version in drive.state.jobs["job"].versions] == [0, 1]


def test_a_timer_is_due_at_the_next_deadline_and_no_more_once_it_was_ticked() -> None:
    drive = started(("a", "b"), cohort=2, min_reports=2)
    jobs = list(drive.state.jobs.values())
    assert next_deadline_run_s(jobs, drive.run_s) == 100
    drive.tick(100)
    assert drive.recorded(RoundExtended) != []
    assert next_deadline_run_s(jobs, drive.run_s) == 200
    drive.update("a")
    drive.tick(100)
    assert next_deadline_run_s(jobs, drive.run_s) is None, "its verdict comes before the next decision"


def test_a_job_that_waits_for_devices_needs_no_timer_once_its_patience_is_over() -> None:
    drive = started(())
    jobs = list(drive.state.jobs.values())
    assert next_deadline_run_s(jobs, drive.run_s) == 100
    drive.tick(100)
    assert next_deadline_run_s(jobs, drive.run_s) is None


def test_at_the_deadline_who_accepted_and_was_not_heard_of_since_is_asked_again() -> None:
    drive = started(("a", "b"), cohort=2, min_reports=2)
    for device in ("a", "b"):
        drive.say(device, Accept(job="job", request=1))
    drive.update("b")
    drive.settle()
    turn = drive.tick(100_000)
    assert ordered(turn, SendRequest) == [SendRequest("job", "a", 1)]
