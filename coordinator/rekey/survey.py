"""What must be known of a recording before it is told again: who joined in which order, and its updates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.journal import Entry
from coordinator.entries import Message, Turned, decode_entry
from coordinator.facts import Joined, RequestsIssued, UpdateReceived, VersionCommitted
from coordinator.inputs import Prepared
from schemas.codec import unpack
from schemas.envelope import Header
from schemas.ids import key_id

Request = tuple[str, str, int]  # job, device, number
Stored = tuple[bytes, bytes]
"""A stored update: the id of the key that it was sealed to, and its digest."""


@dataclass(slots=True)
class Survey:
    """Of one log."""

    joined: list[str] = field(default_factory=list)
    rounds: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """Job and round of every request key, by its id."""
    updates: dict[Stored, None] = field(default_factory=dict)
    received: dict[Request, Stored] = field(default_factory=dict)
    models: dict[tuple[str, bytes], None] = field(default_factory=dict)
    """Job and digest."""
    moments: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """Digests of what server optimisers kept, by job and version."""
    committed: int = 0
    """The entry with the last version."""


def survey(entries: Iterable[Entry]) -> Survey:
    """Read a log, once. Raises `schemas.errors.Malformed`."""
    found = Survey()
    keys: dict[Request, bytes] = {}
    for logged in entries:
        entry = decode_entry(logged.data)
        if not isinstance(entry, Turned):
            continue
        if isinstance(entry.input, Prepared):
            ids = [key_id(public) for _, public in entry.input.keys]
            found.rounds |= dict.fromkeys(ids, (entry.input.job, entry.input.round))
        if isinstance(entry.input, Message) and not entry.input.body:
            header = unpack(entry.input.header, Header)
            found.updates[header.clear.recipient, header.seal.body] = None
        for fact in entry.facts:
            match fact:
                case Joined():
                    found.joined.append(fact.device)
                case RequestsIssued():
                    keys |= {(fact.job, one.device, one.number): key_id(one.key) for one in fact.requests}
                case UpdateReceived():
                    request = fact.job, fact.device, fact.request
                    found.received[request] = keys[request], fact.digest
                case VersionCommitted():
                    found.models[fact.job, fact.model] = None
                    if fact.moments:
                        found.moments[fact.job, fact.version] = fact.moments
                    found.committed = logged.index
                case _:
                    pass
    return found
