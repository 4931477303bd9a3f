"""What a coordinator's log says of every request, and at which entry; read again as the log grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from coordinator.cli.state import open_journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import (
    AnyFact,
    JobEnded,
    JobSubmitted,
    Joined,
    RequestDeclined,
    RequestsIssued,
    RoundClosed,
    UpdateJudged,
    UpdateReceived,
    VersionCommitted,
)

NEVER: Final = 1 << 62


class Violation(Exception):
    """Something that must hold did not."""


class Key(NamedTuple):
    """A request, and the update that answers it."""

    job: str
    device: str
    number: int


class Record:
    """The log as far as it was read. Entries never go: what was read before a crash is there after it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.index = 0
        """Of the last entry that was read."""
        self.jobs: dict[str, int] = {}
        """Their rounds."""
        self.joins: list[str] = []
        self.issued: dict[Key, int] = {}
        self.received: list[tuple[Key, int]] = []
        self.judged: list[tuple[Key, UpdateJudged]] = []
        self.declined: dict[Key, RequestDeclined] = {}
        self.committed: list[tuple[str, int]] = []
        """Job and round."""
        self.states: dict[str, str] = {}
        """Of jobs that have ended."""
        self._round: dict[Key, int] = {}
        self._outlive: set[str] = set()  # jobs whose requests don't end with their round
        self._over: dict[Any, int] = {}  # a request, a round (job, number) or a job → the entry that ended it

    def read(self) -> int:
        """Take up what is new; the index of the last entry. Raises `Violation` if the log became shorter."""
        journal = open_journal(self._home)
        try:
            if journal.count < self.index:
                raise Violation(f"the log has {journal.count} entries, and had {self.index} before")
            for logged in journal.entries():
                if logged.index > self.index:
                    entry = decode_entry(logged.data)
                    self.take(logged.index, *(entry.facts if isinstance(entry, Turned) else ()))
        finally:
            journal.close()
        return self.index

    def take(self, index: int, *facts: AnyFact) -> None:
        """Take up what was decided with one entry."""
        self.index = index
        for fact in facts:
            self._take(fact)

    def _take(self, fact: AnyFact) -> None:
        match fact:
            case Joined():
                self.joins.append(fact.device)
            case JobSubmitted():
                self.jobs[fact.job] = fact.spec.rounds
                if fact.spec.asynchronous is not None:
                    self._outlive.add(fact.job)
            case RequestsIssued():
                for request in fact.requests:
                    key = Key(fact.job, request.device, request.number)
                    self.issued[key], self._round[key] = self.index, fact.round
            case RequestDeclined():
                key = Key(fact.job, fact.device, fact.request)
                self.declined[key] = fact
                self._end(key)
            case UpdateReceived():
                self.received.append((Key(fact.job, fact.device, fact.request), self.index))
            case UpdateJudged():
                key = Key(fact.job, fact.device, fact.request)
                self.judged.append((key, fact))
                self._end(key)
            case RoundClosed() if fact.job not in self._outlive:
                self._end((fact.job, fact.round))
            case VersionCommitted():
                self.committed.append((fact.job, fact.round))
            case JobEnded():
                self.states[fact.job] = fact.state
                self._end(fact.job)
            case _:
                pass

    def _end(self, what: Any) -> None:
        self._over.setdefault(what, self.index)

    def in_flight(self, key: Key, index: int) -> bool:
        """Whether at this entry the request was issued, its update had no verdict, and its round was open."""
        if self.issued.get(key, NEVER) > index:
            return False
        ends = (key, (key.job, self._round[key]), key.job)
        return all(self._over.get(end, NEVER) > index for end in ends)

    def over(self, key: Key) -> bool:
        """Whether nothing more is to come of a request."""
        return key in self._over or (key.job, self._round.get(key)) in self._over or key.job in self._over

    def over_at(self, key: Key) -> int:
        """The entry with a request's verdict, or with its decline."""
        return self._over[key]
