"""How an update is kept in ``bodies/``: u32 length ‖ envelope ‖ its sealed chunks, if any."""

from __future__ import annotations

from hashlib import sha256

from broker.ports import File
from schemas.envelope import LENGTH, Envelope, parse
from schemas.errors import Malformed
from schemas.limits import BODY_BYTES_MAX, HEADER_BYTES_MAX

STORED_BYTES_MAX = BODY_BYTES_MAX + 2 * HEADER_BYTES_MAX


def stored(envelope: Envelope) -> bytes:
    """How an update's envelope is kept: u32 length ‖ envelope. Its chunks, if any, follow it."""
    data = envelope.to_bytes()
    return LENGTH.pack(len(data)) + data


def stored_name(recipient: bytes, digest: bytes) -> str:
    """The body's name of the update ``digest`` that was sealed to the key id ``recipient``.

    With the recipient, whose key is one device's for one request: otherwise another device could send the
    same bytes under its own signature first, and spoil them for the one that they are of.
    """
    return sha256(recipient + digest).hexdigest()


def read_envelope(file: File) -> tuple[Envelope, int]:
    """The envelope at the start of a stored update, and where its chunks begin.

    Raises `Malformed` when a crash cut it short.
    """
    prefix = file.read_at(0, LENGTH.size)
    if len(prefix) < LENGTH.size or not 0 < (size := LENGTH.unpack(prefix)[0]) <= STORED_BYTES_MAX:
        raise Malformed("the stored update is cut short")
    stored = file.read_at(LENGTH.size, size)
    if len(stored) < size:
        raise Malformed("the stored update is cut short")
    return parse(stored), LENGTH.size + size
