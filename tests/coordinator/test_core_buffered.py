"""Asynchronous jobs: buffers fill with whatever comes, devices train on, and nothing counts twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.effects import Commit, Fold, SendRequest
from coordinator.facts import RequestsIssued, RoundClosed, RoundExtended, UpdateJudged, VersionCommitted
from coordinator.state import OPEN_REQUEST, Job, JobState, Request, RequestState
from schemas.events import Decline, StateReply, StateRequest
from schemas.ids import key_id
from schemas.jobs import AsyncSettings
from schemas.limits import OPEN_UPDATES_MAX
from tests.coordinator.drive import Drive, checked, job_spec, ordered, told


def asynchronous(
    devices: str = "abcde",
    *,
    busy: int = 3,
    cohort: int = 2,
    rounds: int = 9,
    min_reports: int = 1,
    staleness_max: int = 20,
    per_device_max: int = 1,
) -> Drive:
    """A job whose first requests have just been issued."""
    drive = Drive()
    drive.enrol(*devices)
    buffered = AsyncSettings(
        concurrency=busy, staleness_max=staleness_max, per_device_max=per_device_max, weighting="constant"
    )
    drive.submit(job_spec(rounds=rounds, cohort=cohort, min_reports=min_reports, asynchronous=buffered))
    drive.settle()
    return drive


def job(drive: Drive) -> Job:
    return drive.state.jobs["job"]


def report(drive: Drive, device: str) -> Request:
    """A device sends its update, and all work that follows is done."""
    request = drive.newest(device)
    drive.update(device)
    drive.settle()
    return request


def test_so_many_devices_train_at_a_time_and_whoever_reports_makes_room_for_another() -> None:
    drive = asynchronous(busy=3, cohort=9)
    first = drive.asked()
    assert len(first) == 3
    report(drive, first[0])
    assert len(drive.asked()) == 3
    assert first[0] not in drive.asked(), "once for each version"
    assert job(drive).rounds_done == 0


def test_a_full_buffer_makes_a_version_and_its_devices_are_asked_for_the_newest() -> None:
    drive = asynchronous("abc", busy=3, cohort=2)
    report(drive, "a")
    report(drive, "b")
    assert [fact.reason for fact in drive.recorded(RoundClosed)] == ["the buffer is full"]
    assert job(drive).rounds_done == 1
    assert drive.asked() == ["a", "b", "c"]
    assert [job(drive).base(drive.newest(device)).number for device in "abc"] == [1, 1, 0]


def test_an_update_of_an_older_version_counts_in_the_buffer_that_is_open() -> None:
    drive = asynchronous("abc", busy=3, cohort=2)
    for device in "abab":
        report(drive, device)
    slow = report(drive, "c")
    assert (slow.state, slow.staleness, slow.counts_in) == (RequestState.FOLDED, 2, 3)


def test_what_is_too_stale_is_closed_and_rejected_and_its_device_asked_again() -> None:
    drive = asynchronous("abc", busy=3, cohort=2, staleness_max=1)
    slow = drive.newest("c")
    for device in "abab":
        report(drive, device)
    assert slow.state is RequestState.CLOSED
    assert drive.newest("c").number == 2
    assert drive.say("c", StateRequest(requests=[], key_set=1)) is not None
    drive.complete("c", key_id(slow.key), "late")
    assert (slow.state, slow.reason) == (RequestState.REJECTED, "late: of version 0, 2 versions ago")


def test_updates_that_wait_when_the_buffer_is_full_are_folded_into_the_next() -> None:
    drive = asynchronous("abcd", busy=4, cohort=2)
    for device in "abcd":
        drive.update(device)
    drive.settle()
    assert [drive_request.counts_in for drive_request in job(drive).requests.values()][:4] == [1, 1, 2, 2]
    assert [fact.folded for fact in drive.recorded(UpdateJudged)] == [True] * 4
    assert job(drive).rounds_done == 2


def test_an_update_that_comes_while_a_version_is_made_counts_in_the_next() -> None:
    drive = asynchronous("abc", busy=3, cohort=2)
    for device in "ab":
        drive.update(device)
        drive.step(checked(Fold("job", device, 1)))
    assert isinstance(drive.pending[-1], Commit)
    turn = drive.update("c")
    assert ordered(turn, Fold) == [Fold("job", "c", 1)]
    drive.restart()
    drive.settle()
    assert job(drive).requests["c", 1].counts_in == 2
    assert job(drive).requests["c", 1].state is RequestState.FOLDED


def test_a_verdict_that_comes_after_its_buffer_closed_does_not_count() -> None:
    drive = asynchronous("abc", busy=3, cohort=2)
    for device in "abc":
        drive.update(device)
    for device in "ab":
        drive.step(checked(Fold("job", device, 1)))
    assert drive.step(checked(Fold("job", "c", 1))).facts == []
    drive.settle()
    assert job(drive).requests["c", 1].counts_in == 2
    assert job(drive).requests["c", 1].state is RequestState.FOLDED


def test_at_the_deadline_a_buffer_with_enough_reports_closes() -> None:
    drive = asynchronous("abc", busy=3, cohort=3)
    report(drive, "a")
    drive.tick(100)
    drive.settle()
    assert [fact.reason for fact in drive.recorded(RoundClosed)] == ["the deadline has passed"]
    assert job(drive).round is not None
    assert job(drive).round.deadline_run_s == drive.run_s + 100  # type: ignore[union-attr]


def test_at_the_deadline_with_too_few_reports_further_devices_are_asked() -> None:
    drive = asynchronous("abcde", busy=2, cohort=3, min_reports=2)
    vanished = drive.asked()
    turn = drive.tick(100)
    assert {(effect.device, effect.request) for effect in ordered(turn, SendRequest)} == {
        (device, 1) for device in vanished
    }
    drive.settle()
    assert len(drive.recorded(RoundExtended)) == 1
    assert len(drive.asked()) == 4
    for device in sorted(set(drive.asked()) - set(vanished)):
        report(drive, device)
    drive.tick(100)
    drive.settle()
    assert job(drive).rounds_done == 1


def test_at_the_deadline_a_buffer_with_enough_reports_waits_for_its_verdicts_only() -> None:
    drive = asynchronous("abcde", busy=2, cohort=3, min_reports=1)
    one, other = drive.asked()
    report(drive, one)
    drive.update(other)
    drive.tick(100)
    assert {fact.deadline_run_s for fact in drive.recorded(RoundExtended)} == {100.0}, "no more time"
    drive.settle()
    assert [fact.reason for fact in drive.recorded(RoundClosed)] == ["the deadline has passed"]


def test_a_device_that_is_rejected_for_ever_does_not_push_out_what_it_has_in_the_buffer() -> None:
    drive = asynchronous("a", busy=1, cohort=3, min_reports=3, per_device_max=2)
    report(drive, "a")
    for _ in range(2 * OPEN_UPDATES_MAX):
        if drive.asked():
            drive.update("a")
            drive.step(checked(drive.pending.pop(), "finite: NaN"))  # type: ignore[arg-type]
        drive.tick(100)
        drive.settle()
    kept = [request for request in job(drive).requests.values() if request.state is RequestState.FOLDED]
    assert len(kept) == 1
    drive.cancel()
    assert kept[0].state is RequestState.REJECTED


def test_a_device_that_declines_is_not_asked_again_before_the_next_version() -> None:
    drive = asynchronous("ab", busy=2, cohort=1)
    drive.say("a", Decline(job="job", request=1, reason="busy", text="not now"))
    drive.settle()
    assert drive.asked() == ["b"]
    report(drive, "b")
    assert drive.asked() == ["a", "b"]


def test_with_a_larger_share_a_fast_device_may_report_more_than_once_to_a_buffer() -> None:
    drive = asynchronous("ab", busy=2, cohort=3, per_device_max=2)
    report(drive, "a")
    assert drive.asked() == ["a", "b"]
    report(drive, "a")
    assert drive.asked() == ["b"]


def test_devices_that_come_later_are_asked_at_once() -> None:
    drive = asynchronous("", busy=2, cohort=1)
    assert drive.asked() == []
    drive.enrol("a")
    drive.settle()
    assert drive.asked() == ["a"]


def test_a_device_that_comes_back_learns_of_its_request_on_an_older_version() -> None:
    drive = asynchronous("abc", busy=3, cohort=2)
    report(drive, "a")
    report(drive, "b")
    turn = drive.say("c", StateRequest(requests=[], key_set=1))
    assert ordered(turn, SendRequest) == [SendRequest("job", "c", 1)]
    (reply,) = [event for _, event in told(turn) if isinstance(event, StateReply)]
    assert [ref.request for ref in reply.requests] == [1]


def test_a_cancelled_job_rejects_what_waits_in_both_buffers() -> None:
    drive = asynchronous("abc", busy=3, cohort=2)
    for device in "abc":
        drive.update(device)
    for device in "ab":
        drive.step(checked(Fold("job", device, 1)))
    drive.cancel()
    assert {request.state for request in job(drive).requests.values()} == {RequestState.REJECTED}


def test_the_last_version_rejects_what_it_does_not_hold() -> None:
    drive = asynchronous("abc", busy=3, cohort=2, rounds=1)
    for device in "abc":
        drive.update(device)
    drive.settle()
    assert job(drive).state is JobState.FINISHED
    rest = job(drive).requests["c", 1]
    assert (rest.state, rest.reason) == (RequestState.REJECTED, "the job was finished")


STEPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), max_size=90)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, busy=st.integers(1, 5), cohort=st.integers(1, 4), stale=st.integers(0, 3))
def test_every_update_counts_once_in_the_version_that_follows_or_is_rejected(
    steps: list[tuple[int, int]], busy: int, cohort: int, stale: int
) -> None:
    drive = asynchronous(busy=busy, cohort=cohort, rounds=6, staleness_max=stale)
    for what, pick in steps:
        asked = drive.asked()
        if what < 4 and asked:
            drive.update(asked[pick % len(asked)])
        elif what < 8 and drive.pending:
            outcome = drive.work(drive.pending.pop(0))
            if outcome is not None:
                drive.step(outcome)
        elif what == 8:
            drive.tick(float(pick))
        elif pick < 20:
            drive.restart()
        within_bounds(job(drive))
    drive.settle()
    for _ in range(40):
        for device in drive.asked():
            drive.update(device)
        drive.settle()
        drive.tick(100)
        drive.settle()
    assert job(drive).state is JobState.FINISHED
    each_counts_once(drive, stale)


def within_bounds(found: Job) -> None:
    training = [request for request in found.requests.values() if request.state in OPEN_REQUEST]
    assert len({request.device for request in training}) == len(training), "one request to a device"
    if found.round and not found.round.closed:
        assert all(found.takes(request) for request in training)
        assert found.round.count(RequestState.FOLDED) < found.spec.cohort


def each_counts_once(drive: Drive, stale: int) -> None:
    """Of the log: between one version and the next just those were folded that count in it."""
    waiting: dict[tuple[str, int], int] = {}
    folded: list[int] = []
    for fact in drive.facts:
        match fact:
            case RequestsIssued():
                waiting |= {(issued.device, issued.number): fact.round for issued in fact.requests}
            case UpdateJudged() if fact.folded:
                folded.append(waiting.pop((fact.device, fact.request)))
            case VersionCommitted() if fact.round:
                assert 1 <= len(folded) <= job(drive).spec.cohort
                assert all(fact.round - stale <= asked_in <= fact.round for asked_in in folded)
                folded = []
            case _:
                pass
    rest = [request for request in job(drive).requests.values() if request.state is RequestState.RECEIVED]
    assert not rest
