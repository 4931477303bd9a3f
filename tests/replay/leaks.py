"""Everything in a recording that could tell whose it is, and where it would show in another one."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from broker.journal import Entry, Journal
from broker.ports import Files
from coordinator.entries import Message, decode_entry
from coordinator.facts import UpdateJudged, VersionCommitted
from coordinator.keystore import load_identity
from coordinator.recovery import FOLDER
from schemas.codec import unpack, unpack_plain
from schemas.envelope import Envelope, Header, open_envelope
from schemas.errors import Malformed
from schemas.ids import broker_user, key_id
from schemas.keys import SIGNATURE_BYTES

DRAWN_BYTES_MIN = 16  # what is shorter is no key, id, digest or signature


def readable(files: Files, home: Path) -> bytes:
    """All that a state directory says to whoever holds its keys: each file, and what is sealed in its log."""
    found = [path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()]
    return b"\n".join([*found, *_opened(files, home)])


def _opened(files: Files, home: Path) -> Iterator[bytes]:
    identity = load_identity(files, home)
    for logged in _entries(files, home):
        entry = decode_entry(logged.data)
        message = getattr(entry, "input", None)
        if isinstance(message, Message) and message.body:
            header = unpack(message.header, Header)
            envelope = Envelope(header, message.header, message.signature, message.body)
            yield open_envelope(envelope, identity.box, identity.federation).inner


def _entries(files: Files, home: Path) -> Iterator[Entry]:
    journal = Journal.open(files, home / FOLDER, load_identity(files, home).federation, read_only=True)
    try:
        yield from journal.entries()
    finally:
        journal.close()


def drawn(files: Files, home: Path) -> set[bytes]:
    """Every key, id, digest and signature of a recording, but for digests of models, changes and moments."""
    identity = load_identity(files, home)
    federation = identity.federation
    found = {federation, identity.root, broker_user(federation, "").encode()}
    shown = {bytes(32)}
    for logged in _entries(files, home):
        found |= {logged.head, *_leaves(logged.data)}
        for fact in getattr(decode_entry(logged.data), "facts", ()):
            shown |= {fact.model, fact.moments} if isinstance(fact, VersionCommitted) else set()
            shown |= {fact.content} if isinstance(fact, UpdateJudged) else set()
    documents = [path.read_bytes() for path in (home / "keys").rglob("*") if path.is_file()]
    found |= {leaf for data in (*documents, *_opened(files, home)) for leaf in _leaves(data)}
    for path in (home / "keys").rglob("*.key"):
        found.add(bytes.fromhex(path.read_text()))
    found |= {key_id(one) for one in found if len(one) == 32}
    return {one for one in found if len(one) >= DRAWN_BYTES_MIN or one.startswith(b"@")} - shown


def _leaves(value: Any) -> Iterator[bytes]:
    """All bytes in ``value``, also those in documents within documents."""
    match value:
        case bytes():
            documents = [found for start in (0, SIGNATURE_BYTES) if (found := _document(value[start:]))]
            yield from _each(documents)
            if not documents:
                yield value
        case dict():
            yield from _each((*value, *value.values()))
        case list():
            yield from _each(value)


def _document(data: bytes) -> Any:
    """What is packed in ``data``; None if it is no document."""
    try:
        found = unpack_plain(data, bytes_max=1 << 24)
    except Malformed:
        return None
    return found if isinstance(found, list | dict) else None


def _each(values: Iterable[Any]) -> Iterator[bytes]:
    for value in values:
        yield from _leaves(value)


def spellings(needle: bytes) -> Iterator[bytes]:
    """As it is, in hex, and in Base64 wherever it may begin in what is encoded."""
    yield needle
    yield needle.hex().encode()
    yield needle.hex().upper().encode()
    for before in range(3):
        # Characters that also depend on what stands beside it are cut off.
        start, end = -(-before * 4 // 3), (before + len(needle)) * 4 // 3
        for encode in (b64encode, urlsafe_b64encode):
            yield encode(bytes(before) + needle)[start:end]


def leaks(needles: Iterable[bytes], haystack: bytes) -> list[bytes]:
    """Those that occur."""
    return [one for one in needles if any(spelling in haystack for spelling in spellings(one))]
