"""An update is received once, judged once, and answered as often as it comes."""

from __future__ import annotations

import pytest

from coordinator.effects import Fold, SendReceipt, SendRequest, Tell
from coordinator.facts import RoundClosed, UpdateJudged, UpdateReceived
from coordinator.state import RequestState
from schemas.events import (
    Accept,
    ChunkPull,
    Decline,
    Refusal,
    RequestRef,
    Revoked,
    StateReply,
    StateRequest,
    Verdict,
)
from schemas.ids import key_id, transfer_id
from tests.coordinator.drive import Drive, checked, digest, job_spec, ordered, told
from tests.schemas.parties import secret


@pytest.fixture
def drive() -> Drive:
    """A first round that three devices were asked for, and that two reports would close."""
    drive = Drive()
    drive.enrol("a", "b", "c")
    drive.submit(job_spec(cohort=2, over_selection=1.5))
    drive.settle()
    assert drive.asked() == ["a", "b", "c"]
    return drive


def receipt(device: str, content: str) -> SendReceipt:
    return SendReceipt(device, "job", 1, digest(content))


def folded(device: str) -> Tell:
    return Tell(device, Verdict(job="job", request=1, folded=True, reason="", round=1))


def rejected(device: str, reason: str) -> Tell:
    return Tell(device, Verdict(job="job", request=1, folded=False, reason=reason, round=1))


def close_round(drive: Drive) -> None:
    drive.update("a")
    drive.update("b")
    drive.settle()
    assert drive.state.jobs["job"].rounds_done == 1


def test_an_update_is_receipted_when_it_is_durable_and_judged_when_it_was_looked_at(drive: Drive) -> None:
    turn = drive.update("a", content="first")
    assert turn.effects == [receipt("a", "first"), Fold("job", "a", 1)]
    turn = drive.step(checked(Fold("job", "a", 1)))
    assert turn.effects == [folded("a")]
    request = drive.newest("a")
    assert (request.state, request.norm, request.samples) == (RequestState.FOLDED, 1.0, 10)
    assert (request.train_s, request.evaluation) == (0.5, {"accuracy": 0.5})


def test_the_same_update_again_gets_the_same_receipt_and_is_not_folded_again(drive: Drive) -> None:
    drive.update("a", content="first")
    assert drive.update("a", content="first").effects == [receipt("a", "first")]
    drive.settle()
    assert drive.update("a", content="first").effects == [receipt("a", "first"), folded("a")]
    assert len(drive.recorded(UpdateReceived)) == len(drive.recorded(UpdateJudged)) == 1


def test_the_first_durable_digest_wins_and_later_receipts_name_it(drive: Drive) -> None:
    drive.update("a", content="first")
    assert drive.update("a", content="second").effects == [receipt("a", "first")]
    drive.settle()
    assert drive.update("a", content="third").effects == [receipt("a", "first"), folded("a")]
    assert drive.newest("a").digest == digest("first")


def test_a_verdict_stands_however_often_and_whatever_is_found_later(drive: Drive) -> None:
    drive.update("a")
    drive.settle()
    assert drive.step(checked(Fold("job", "a", 1), "finite: NaN")).facts == []
    assert drive.newest("a").state is RequestState.FOLDED


def test_updates_are_folded_in_the_order_of_the_log_whatever_the_order_of_verdicts(drive: Drive) -> None:
    drive.update("c")
    drive.update("a")
    drive.step(checked(Fold("job", "a", 1)))
    drive.step(checked(Fold("job", "c", 1)))
    round_ = drive.state.jobs["job"].round
    assert round_ is not None
    assert [request.device for request in round_.order] == ["c", "a"]


def test_a_round_does_not_close_before_all_that_was_receipted_is_judged(drive: Drive) -> None:
    for device in "abc":
        drive.update(device)
    drive.step(checked(Fold("job", "a", 1)))
    drive.step(checked(Fold("job", "b", 1)))
    drive.tick(1000)
    round_ = drive.state.jobs["job"].round
    assert round_ is not None
    assert drive.recorded(RoundClosed) == []
    drive.step(checked(Fold("job", "c", 1)))
    assert len(drive.recorded(RoundClosed)) == 1
    assert round_.count(RequestState.FOLDED) == 3


@pytest.mark.parametrize(
    ("norm", "samples", "kind"),
    [(1000.5, 10, "norm"), (1.0, 10_000_001, "samples"), (float("inf"), 1, "norm")],
)
def test_an_update_beyond_the_jobs_bounds_is_rejected_by_name(
    drive: Drive, norm: float, samples: int, kind: str
) -> None:
    drive.update("a")
    drive.step(checked(Fold("job", "a", 1), norm=norm, samples=samples))
    assert drive.newest("a").state is RequestState.REJECTED
    assert drive.newest("a").reason.startswith(f"{kind}: ")


def test_what_was_found_wrong_is_the_verdicts_reason(drive: Drive) -> None:
    drive.update("a")
    turn = drive.step(checked(Fold("job", "a", 1), "layout: too long"))
    assert turn.effects == [rejected("a", "layout: too long")]


def test_an_update_at_the_jobs_bounds_is_folded(drive: Drive) -> None:
    drive.update("a")
    drive.step(checked(Fold("job", "a", 1), norm=1000.0, samples=10_000_000))
    assert drive.newest("a").state is RequestState.FOLDED


def test_a_late_update_is_receipted_and_rejected_as_late(drive: Drive) -> None:
    key = key_id(drive.newest("c").key)
    close_round(drive)
    turn = drive.complete("c", key, "late")
    assert turn.effects == [receipt("c", "late"), rejected("c", "late: round 1 was closed")]


def test_an_update_for_a_job_that_has_ended_is_receipted_and_rejected(drive: Drive) -> None:
    drive.cancel()
    turn = drive.update("c", content="late")
    assert turn.effects == [receipt("c", "late"), rejected("c", "late: the job was cancelled")]


@pytest.mark.parametrize("whose", ["nobody", "b"])
def test_an_update_under_a_key_that_is_not_the_devices_is_refused_by_its_transfer(
    drive: Drive, whose: str
) -> None:
    key = secret("nobody's") if whose == "nobody" else key_id(drive.newest(whose).key)
    ((device, event),) = told(drive.complete("a", key, "content"))
    assert device == "a"
    assert isinstance(event, Refusal)
    assert (event.code, event.transfer) == ("closed", transfer_id(digest("content")))
    assert drive.recorded(UpdateReceived) == []


def test_an_update_received_before_its_devices_revocation_folds(drive: Drive) -> None:
    drive.update("a")
    drive.revoke("a")
    drive.settle()
    assert drive.newest("a").state is RequestState.FOLDED


def test_an_update_received_after_its_devices_revocation_does_not_fold(drive: Drive) -> None:
    drive.revoke("a")
    turn = drive.update("a", content="too late")
    assert turn.effects == [receipt("a", "too late"), rejected("a", "the device was revoked")]


@pytest.mark.parametrize("declined", [False, True])
def test_what_was_asked_of_a_devices_earlier_life_is_not_taken_from_the_next(
    drive: Drive, *, declined: bool
) -> None:
    if declined:
        drive.say("a", Decline(job="job", request=1, reason="busy", text=""))
    drive.revoke("a")
    drive.enrol("a", keys="second life")
    drive.update("a")
    drive.settle()
    assert drive.newest("a").state is RequestState.REJECTED


def test_an_update_after_a_decline_still_counts_while_its_round_is_open(drive: Drive) -> None:
    drive.say("a", Decline(job="job", request=1, reason="busy", text=""))
    drive.update("a")
    drive.settle()
    assert drive.newest("a").state is RequestState.FOLDED


def test_what_is_said_about_no_open_request_changes_nothing(drive: Drive) -> None:
    drive.update("a")
    for event in (
        Accept(job="job", request=1),
        Decline(job="job", request=1, reason="busy", text=""),
        Accept(job="job", request=2),
        Accept(job="other", request=1),
        Decline(job="other", request=1, reason="busy", text=""),
    ):
        assert drive.say("a", event).facts[1:] == []
    assert drive.newest("a").state is RequestState.RECEIVED


def test_a_device_that_comes_back_learns_what_is_open_and_gets_what_it_lacks(drive: Drive) -> None:
    here = RequestRef("job", 1)
    lacks = drive.say("a", StateRequest(requests=[], key_set=1))
    assert lacks.effects == [SendRequest("job", "a", 1), Tell("a", StateReply(requests=[here], closed=[]))]
    holds = drive.say("a", StateRequest(requests=[here], key_set=1))
    assert holds.effects == [Tell("a", StateReply(requests=[here], closed=[]))]


def test_a_device_that_comes_back_learns_what_was_closed(drive: Drive) -> None:
    close_round(drive)
    held = [RequestRef("other", 5), RequestRef("job", 1), RequestRef("job", 2)]
    turn = drive.say("c", StateRequest(requests=held, key_set=1))
    closed = [RequestRef("job", 1), RequestRef("other", 5)]
    assert turn.effects == [Tell("c", StateReply(requests=[RequestRef("job", 2)], closed=closed))]


def test_a_revoked_device_is_told_nothing_about_requests_or_models(drive: Drive) -> None:
    drive.revoke("a")
    for event in (StateRequest(requests=[], key_set=1), ChunkPull(transfer=bytes(16), chunks=[0])):
        ((_, said),) = told(drive.say("a", event))
        assert isinstance(said, Revoked)
        assert ordered(drive.say("a", event), SendRequest) == []
