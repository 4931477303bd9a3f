"""What a doctor does to a log: each changes entries, or takes some away, and says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from coordinator.entries import Message, Turned
from coordinator.facts import (
    Joined,
    RequestsIssued,
    RoundClosed,
    RoundOpened,
    UpdateJudged,
    UpdateReceived,
    VersionCommitted,
)
from tests.replay.doctored import Entries, alter, fact, find

JOB: Final = "job-1"
Doctor = Callable[[Entries], list[int]]


def round_of(entries: Entries) -> tuple[int, list[int], list[int]]:
    """A round that folded two updates: the entry of its version, those of the receptions and verdicts."""
    for at in find(entries, VersionCommitted, lambda one: one.job == JOB and one.round > 0):
        since = max(one for one in find(entries, VersionCommitted) if one < at)
        judged = [one for one in find(entries, UpdateJudged, lambda one: one.folded) if since < one < at]
        if len(judged) > 1:
            received = [one for one in find(entries, UpdateReceived) if since < one < at]
            return at, received, judged
    raise AssertionError("no round folded two updates")


def swapped_facts(entries: Entries) -> list[int]:
    """Which update was received: two exchanged."""
    _, (a, b, *_), _ = round_of(entries)
    first, second = (fact(entries, one, UpdateReceived).digest for one in (a, b))
    alter(entries, a, UpdateReceived, digest=second)
    alter(entries, b, UpdateReceived, digest=first)
    return [a, b]


def swapped_messages(entries: Entries) -> list[int]:
    """The same, with the messages that came."""
    a, b = swapped_facts(entries)
    first, second = entries[a], entries[b]
    assert isinstance(first, Turned)
    assert isinstance(second, Turned)
    entries[a], entries[b] = replace(first, input=second.input), replace(second, input=first.input)
    return [a, b]


def relabelled_messages(entries: Entries) -> list[int]:
    """And under the other's name."""
    a, b = swapped_messages(entries)
    for at in (a, b):
        turn = entries[at]
        assert isinstance(turn, Turned)
        assert isinstance(turn.input, Message)
        named = replace(turn.input, device=fact(entries, at, UpdateReceived).device)
        entries[at] = replace(turn, input=named)
    return [a, b]


def without_reception(entries: Entries) -> list[int]:
    _, (a, *_), _ = round_of(entries)
    del entries[a]
    return [a]


def without_verdict(entries: Entries) -> list[int]:
    _, _, (a, *_) = round_of(entries)
    del entries[a]
    return [a]


def without_close(entries: Entries) -> list[int]:
    """The last verdict of a round, which closed it."""
    at, _, _ = round_of(entries)
    closed = max(one for one in find(entries, RoundClosed) if one < at)
    del entries[closed]
    return [closed]


def without_update(entries: Entries) -> list[int]:
    """An update and its verdict, as if it had never come."""
    _, _, (judged, *_) = round_of(entries)
    device = fact(entries, judged, UpdateJudged).device
    received = max(
        one for one in find(entries, UpdateReceived, lambda one: one.device == device) if one < judged
    )
    del entries[received], entries[judged]
    return [received, judged]


def without_requests(entries: Entries) -> list[int]:
    at = min(find(entries, RequestsIssued))
    del entries[at]
    return [at]


def without_a_device(entries: Entries) -> list[int]:
    at = min(find(entries, Joined))
    del entries[at]
    return [at]


def without_the_round(entries: Entries) -> list[int]:
    """The fact alone: what else was decided in its turn stays."""
    _, _, (judged, *_) = round_of(entries)
    opened = max(one for one in find(entries, RoundOpened) if one < judged)
    turn = entries[opened]
    assert isinstance(turn, Turned)
    entries[opened] = replace(turn, facts=[one for one in turn.facts if not isinstance(one, RoundOpened)])
    return [opened + 1]


def other_weight(entries: Entries) -> list[int]:
    _, _, (a, *_) = round_of(entries)
    alter(entries, a, UpdateJudged, samples=1_000)
    return [a]


def other_weight_as_checked(entries: Entries) -> list[int]:
    """Also where the check says it."""
    _, _, (a, *_) = round_of(entries)
    alter(entries, a, UpdateJudged, told=True, samples=1_000)
    return [a]


def other_weight_everywhere(entries: Entries) -> list[int]:
    """And in the sum of the version."""
    at, _, (a, *_) = round_of(entries)
    more = 1_000 - fact(entries, a, UpdateJudged).samples
    alter(entries, a, UpdateJudged, told=True, samples=1_000)
    samples = fact(entries, at, VersionCommitted).samples + more
    alter(entries, at, VersionCommitted, told=True, samples=samples)
    return [a]


DOCTORS: Final = [
    swapped_facts,
    swapped_messages,
    relabelled_messages,
    without_reception,
    without_verdict,
    without_close,
    without_update,
    without_requests,
    without_a_device,
    without_the_round,
    other_weight,
    other_weight_as_checked,
    other_weight_everywhere,
]
REMOVED: Final = tuple(one for one in DOCTORS if one.__name__.startswith("without_"))
