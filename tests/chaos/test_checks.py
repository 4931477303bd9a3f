"""What a run counts as a hit, as lost and as doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.facts import (
    AnyFact,
    IssuedRequest,
    JobEnded,
    RequestDeclined,
    RequestsIssued,
    RoundClosed,
    UpdateJudged,
    UpdateReceived,
)
from tests.chaos.checks import Counted, check_receipts, check_updates
from tests.chaos.record import Key, Record

KEY = Key("j", "d", 1)
ISSUED = RequestsIssued(job="j", round=1, epoch=1, requests=[IssuedRequest("d", 1, b"k")], deadline_run_s=1.0)
RECEIVED = UpdateReceived(job="j", device="d", request=1, digest=b"x")
FOLDED = UpdateJudged(job="j", device="d", request=1, folded=True, reason="")
ENDS = [
    FOLDED,
    RequestDeclined(job="j", device="d", request=1, reason="worker", text=""),
    RoundClosed(job="j", round=1, reason=""),
    JobEnded(job="j", state="cancelled", reason=""),
]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    record = Record(tmp_path)
    record.take(1)
    record.take(2, ISSUED)
    return record


@pytest.mark.parametrize("end", ENDS)
def test_an_update_is_in_flight_from_its_request_to_its_end(record: Record, end: AnyFact) -> None:
    record.take(3, RECEIVED)
    record.take(4, end)
    assert [record.in_flight(KEY, index) for index in range(1, 6)] == [False, True, True, False, False]
    assert record.over(KEY)


def counted(record: Record, *seen: tuple[Key, int]) -> tuple[int, int, int]:
    """Lost, doubled, and everything that is wrong."""
    found = Counted()
    check_updates(record, found)
    check_receipts(set(seen), record, found)
    return found.lost, found.doubled, len(found.wrong)


def test_an_update_that_was_receipted_and_folded_once_is_right(record: Record) -> None:
    record.take(3, RECEIVED)
    record.take(4, FOLDED)
    assert counted(record, (KEY, 3), (KEY, 4), (KEY, 0)) == (0, 0, 0)


def test_an_update_that_was_receipted_and_never_judged_is_lost(record: Record) -> None:
    record.take(3, RECEIVED)
    assert counted(record) == (1, 0, 1)


def test_an_update_that_only_its_device_saw_receipted_is_lost(record: Record) -> None:
    assert counted(record, (KEY, 3)) == (1, 0, 1)


def test_a_receipt_that_went_out_before_its_entry_is_wrong(record: Record) -> None:
    record.take(3, RECEIVED)
    record.take(4, FOLDED)
    assert counted(record, (KEY, 2)) == (0, 0, 1)


@pytest.mark.parametrize("again", [RECEIVED, FOLDED])
def test_an_update_that_was_received_or_judged_twice_is_doubled(record: Record, again: AnyFact) -> None:
    record.take(3, RECEIVED)
    record.take(4, FOLDED)
    record.take(5, again)
    assert counted(record) == (0, 1, 1)


def test_a_rejection_needs_a_reason(record: Record) -> None:
    record.take(3, RECEIVED)
    record.take(4, UpdateJudged(job="j", device="d", request=1, folded=False, reason=""))
    assert counted(record) == (0, 0, 1)
