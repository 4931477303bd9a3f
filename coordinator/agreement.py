"""Whether the entries of a log agree: with each other, with their inputs, and with the state so far.

Checksums and the chain show what an accident did. Whoever rewrites the frames makes them right again; what is
left then is that the entries contradict each other. A check that finds nothing proves nothing of the models:
they are computed again by `coordinator.replay`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import sha256
from typing import Final

import msgspec

from coordinator import facts as f
from coordinator.entries import Logged, Message, Sent, Turned
from coordinator.evaluation import of_devices
from coordinator.inputs import Checked, Committed, Evaluated, Input
from coordinator.state import Job, Request, RequestState, State
from schemas.codec import unpack
from schemas.envelope import Header
from schemas.events import Receipt, decode_from_coordinator
from schemas.ids import DIGEST_BYTES, key_id
from schemas.jobs import CENTRAL

SAID_BY: Final[dict[type[f.Fact], type[Input]]] = {
    f.UpdateJudged: Checked,
    f.VersionCommitted: Committed,
    f.VersionEvaluated: Evaluated,
}
"""Facts that repeat what their input says, field by field."""

RECEIPT: Final = str(Receipt.__struct_config__.tag).encode()
NO_ENTRIES: Final = b"\x90"  # an empty array
UNKNOWN: Final = "it tells of something that the log does not have"
"""Of an entry that cannot be applied."""


class Agreement:
    """Goes through a log in its order, beside whoever applies its facts to ``state``; entries up to ``since``
    are not seen. Both methods return what disagrees, or nothing."""

    def __init__(self, state: State, since: int = 0) -> None:
        self._state = state
        self._since = since
        self._lasts = array("Q")  # the last entry of each frame
        self._heads = bytearray()  # and its chain

    def entry(self, entry: Logged, index: int, head: bytes) -> str:
        """About an entry as such, before its facts. Raises `schemas.errors.WireError`."""
        if self._heads[-DIGEST_BYTES:] == head:
            self._lasts[-1] = index
        else:
            self._lasts.append(index)
            self._heads += head
        if not isinstance(entry, Sent) or RECEIPT not in entry.inner:  # the others need no decoding
            return ""
        event = decode_from_coordinator(entry.inner)
        return self._receipt(entry.device, event) if isinstance(event, Receipt) else ""

    def _receipt(self, device: str, receipt: Receipt) -> str:
        job = self._state.jobs.get(receipt.job)
        request = job.requests.get((device, receipt.request)) if job else None
        if request and request.digest != receipt.digest:
            of = _of(receipt.job, device, receipt.request)
            return f"{of}: a receipt for an update that the log never received"
        if receipt.index <= self._since:
            return ""
        frame = bisect_left(self._lasts, receipt.index)
        head = bytes(self._heads[frame * DIGEST_BYTES : (frame + 1) * DIGEST_BYTES])
        if receipt.head in (head, after_nothing(head)):
            return ""
        was = (
            f"device {device} was told that the head is {receipt.head.hex()[:16]}… with entry {receipt.index}"
        )
        return f"{was}, and it is another: what came before was written anew"

    def fact(self, fact: f.AnyFact, turn: Turned) -> str:
        """About a fact of ``turn``, before it is applied. Raises `schemas.errors.WireError`."""
        kind = SAID_BY.get(type(fact))
        if kind and isinstance(turn.input, kind):
            for name in fact.__struct_fields__:
                told, said = getattr(fact, name), getattr(turn.input, name, None)
                if said is not None and repr(said) != repr(told):  # as text: a measured NaN equals itself
                    of = f" of {fact.device}" if isinstance(fact, f.UpdateJudged) else ""
                    return f"{_name(fact)}{of}: {name} {told!r}, and its input says {said!r}"
        match fact:
            case f.UpdateReceived():
                return self._received(fact, turn)
            case f.UpdateJudged():
                return self._judged(fact, turn)
            case f.VersionCommitted():
                return self._committed(fact, turn)
            case f.VersionEvaluated():
                return self._evaluated(fact, turn)
            case f.RoundOpened():
                return self._opened(fact)
            case f.RequestsIssued() | f.RoundExtended() | f.RoundClosed():
                return self._in_round(fact)
        return ""

    def _request(self, job: str, device: str, number: int) -> Request | None:
        known = self._state.jobs.get(job)
        return known.requests.get((device, number)) if known else None

    def _received(self, fact: f.UpdateReceived, turn: Turned) -> str:
        request, of = (
            self._request(fact.job, fact.device, fact.request),
            _of(fact.job, fact.device, fact.request),
        )
        if request is None:
            return f"{of}: an update to a request that the log never issued"
        if request.digest:
            return f"{of}: its update was received before"
        message = turn.input
        if not isinstance(message, Message) or message.body or message.device != fact.device:
            return f"{of}: an update was received without a message of it"
        header = unpack(message.header, Header)
        if header.seal.body != fact.digest:
            return f"{of}: the update is not the one that its message signs"
        if header.clear.recipient != key_id(request.key):
            return f"{of}: the message's update is sealed to another request"
        return ""

    def _judged(self, fact: f.UpdateJudged, turn: Turned) -> str:
        request, of = (
            self._request(fact.job, fact.device, fact.request),
            _of(fact.job, fact.device, fact.request),
        )
        if request is None or not request.digest:
            return f"{of}: a verdict on an update that the log never received"
        if fact.folded and not isinstance(turn.input, Checked):
            return f"{of}: folded, and nobody checked the update"
        if fact.folded and request.state is not RequestState.RECEIVED:
            return f"{of}: folded, after it was {request.state}"
        return ""

    def _committed(self, fact: f.VersionCommitted, turn: Turned) -> str:
        job, of = self._state.jobs.get(fact.job), f"version {fact.version} of job {fact.job}"
        if job is None or fact.version != len(job.versions) or not isinstance(turn.input, Committed):
            return f"{of}: nothing led to it"
        if not fact.round:
            return f"{of}: the first parameters hold no samples" if fact.samples else ""
        if job.round is None or job.round.number != fact.round or not job.round.closed:
            return f"{of}: its round was not closed"
        for request in job.round.order:
            if request.state is RequestState.RECEIVED:
                return f"{of}: {_of(job.id, request.device, request.number)} has no verdict"
        samples = sum(one.samples for one in job.round.order if one.state is RequestState.FOLDED)
        if samples != fact.samples:
            return f"{of}: of {fact.samples} samples, and the updates folded into it have {samples}"
        return ""

    def _evaluated(self, fact: f.VersionEvaluated, turn: Turned) -> str:
        job, of = self._state.jobs.get(fact.job), f"what version {fact.version} of job {fact.job} scores"
        if job is None or job.spec.evaluation is None or fact.version >= len(job.versions):
            return f"{of}: nobody asked"
        if fact.source == CENTRAL:
            return "" if isinstance(turn.input, Evaluated) else f"{of}: nobody measured it"
        told = repr(of_devices(job))
        return "" if told == repr(fact) else f"{of}: {fact!r}, and the updates tell {told}"

    def _opened(self, fact: f.RoundOpened) -> str:
        job, of = self._state.jobs.get(fact.job), f"round {fact.round} of job {fact.job}"
        if job is None or job.round is not None or fact.round != job.rounds_done + 1 or not job.versions:
            return f"{of}: another one was to be opened"
        return "" if fact.base == job.versions[-1].model else f"{of}: on another version than the newest"

    def _in_round(self, fact: f.RequestsIssued | f.RoundExtended | f.RoundClosed) -> str:
        job: Job | None = self._state.jobs.get(fact.job)
        if job is None or job.round is None or job.round.number != fact.round or job.round.closed:
            return f"{_name(fact)}: round {fact.round} of job {fact.job} was not open"
        return ""


def after_nothing(head: bytes) -> bytes:
    """The head of a frame without entries behind the one with ``head``: the first coordinators wrote one now
    and then, and told devices of it."""
    return sha256(head + NO_ENTRIES).digest()


def _name(fact: msgspec.Struct) -> str:
    return str(fact.__struct_config__.tag)


def _of(job: str, device: str, request: int) -> str:
    return f"device {device}, request {request} of job {job}"
