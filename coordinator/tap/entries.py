"""Entries of a tap's log. What it holds besides is as in the coordinator's: `coordinator.entries`."""

from __future__ import annotations

from typing import Final

import msgspec

from broker.journal import ENTRY_BYTES_MAX
from coordinator.entries import Message, Turned
from coordinator.inputs import Moment
from schemas import chunks
from schemas.codec import OneOf, pack, unpack_one
from schemas.envelope import parse
from schemas.errors import WireError
from schemas.limits import KIB, MESSAGE_BYTES_MAX

UP: Final = "up"
DOWN: Final = "down"
UNDECIDED: Final = 0
"""The behaviour of a turn that nobody decided: a tap only heard the message."""
CUT_BYTES: Final = KIB
"""What is kept of a message that is larger than any of ours."""


class Passed(msgspec.Struct, frozen=True, kw_only=True, tag_field="entry", tag="passed"):
    """A message as it passed, ``size`` bytes to (``way`` is `DOWN`) or from (`UP`) a device.

    ``data`` is all of it. Or it is its beginning: what follows is the same as in the entry ``same``, or, if
    that is 0, was left out.
    """

    at: Moment
    way: str
    device: str
    size: int
    data: bytes
    same: int = 0


class Listening(msgspec.Struct, frozen=True, kw_only=True, tag_field="entry", tag="listening"):
    """From here on the tap hears. It may have missed what passed in the ``gap_s`` seconds before; None at the
    beginning."""

    at: Moment
    gap_s: float | None


Tapped = Turned | Passed | Listening
_TAPPED: Final[OneOf[Tapped]] = OneOf(Tapped)


def entry_of(at: Moment, topic: str, payload: bytes) -> Turned | Passed:
    """What is recorded of a message on one of the federation's topics."""
    way, device = topic.split("/")[-2:]
    if way == UP:
        try:
            heard = parse(payload)
        except WireError:
            pass  # a chunk, a join, or nothing of ours
        else:
            message = Message(
                device=device, header=heard.header_bytes, signature=heard.signature, body=heard.body
            )
            return Turned(at=at, behaviour=UNDECIDED, input=message, facts=[])
    data = payload if len(payload) <= MESSAGE_BYTES_MAX else payload[:CUT_BYTES]
    return Passed(at=at, way=way, device=device, size=len(payload), data=data)


def again(first: int, passed: Passed) -> Passed:
    """``passed``, a chunk that has the same bytes as the entry ``first``."""
    return msgspec.structs.replace(passed, data=passed.data[: chunks.HEAD.size], same=first)


def encode_tapped(entry: Tapped) -> bytes:
    """An entry as the journal keeps it."""
    return pack(entry)


def decode_tapped(data: bytes) -> Tapped:
    """What `encode_tapped` wrote. Raises `schemas.errors.Malformed`."""
    return unpack_one(data, _TAPPED, bytes_max=ENTRY_BYTES_MAX)
