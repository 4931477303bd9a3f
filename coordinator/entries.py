"""Entries of the log: every turn of the core (its input and the facts), and every message that was sent."""

from __future__ import annotations

from typing import Final

import msgspec

from coordinator.facts import AnyFact
from coordinator.inputs import Moment, Recorded
from schemas.codec import OneOf, pack, unpack_one
from schemas.limits import CHUNK_BYTES_MAX


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="input", tag="message"):
    """A device's message as it came. ``body`` is empty when the whole message is kept in the bodies, under
    the SHA-256 of its body that the header names."""

    device: str
    header: bytes
    signature: bytes
    body: bytes


class Turned(msgspec.Struct, frozen=True, kw_only=True, tag_field="entry", tag="turn"):
    """One turn of the core: what came, what was decided, by which behaviour of the core."""

    at: Moment
    behaviour: int
    input: Recorded | Message
    facts: list[AnyFact]


class Sent(msgspec.Struct, frozen=True, kw_only=True, tag_field="entry", tag="sent"):
    """A message to a device: its header and its inner document, secrets taken out."""

    at: Moment
    device: str
    header: bytes
    inner: bytes


Logged = Turned | Sent
_LOGGED: Final[OneOf[Logged]] = OneOf(Logged)


def encode_entry(entry: Logged) -> bytes:
    """An entry as the journal keeps it."""
    return pack(entry)


def decode_entry(data: bytes) -> Logged:
    """What `encode_entry` wrote. Raises `schemas.errors.Malformed`."""
    return unpack_one(data, _LOGGED, bytes_max=2 * CHUNK_BYTES_MAX)
