"""An update that is being opened: what it must be, what its body says, and the parts that it is opened in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from broker.ports import File
from coordinator.stored import read_envelope
from schemas.encodings import FLOAT32, Encoding, encoded_bytes, told_encoding
from schemas.envelope import Clear, Opened, open_envelope
from schemas.errors import WireError
from schemas.events import Update, decode_from_device
from schemas.keys import BoxKey
from schemas.models import DELTA, Layout


class Unfit(Exception):
    """An update that cannot be folded. The text starts with the kind of fault: recorded as its verdict."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the update that answers one request must be; signed by ``signer``, unless that was looked at. It
    is encoded as float32 or in ``encoding``."""

    federation: bytes
    job: str
    request: int
    base: bytes
    layout: Layout
    key: BoxKey
    signer: bytes = b""
    encoding: Encoding = FLOAT32


@dataclass(slots=True)
class Part:
    """Chunks of an update that are opened one after the other, and coordinates of the layout.

    What is owed of the update before is added to the sum for the coordinates below ``added``, and will be for
    those up to ``stop``. ``squares`` and ``parted`` are the sums over blocks, in the order of the chunks.
    """

    chunks: range
    added: int
    stop: int
    block: NDArray[np.float64]
    sealed: memoryview = field(default_factory=lambda: memoryview(b""))
    squares: list[float] = field(default_factory=list)
    parted: list[float] = field(default_factory=list)
    problem: Unfit | OSError | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """An update that answers its request. Its chunks, ``chunks_at`` in the file, are not opened yet."""

    update: Update
    clear: Clear
    opened: Opened
    chunks_at: int
    encoding: Encoding
    encoded_bytes: int
    parts: list[Part] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        return self.encoding == FLOAT32


def bound(file: File, expected: Expected, count: int) -> Opening:
    """The update in a file, bound to its request; ``count`` coordinates belong. Raises `Unfit`."""
    try:
        envelope, chunks_at = read_envelope(file)
        if expected.signer:
            envelope.check_signature(expected.signer)
        opened = open_envelope(envelope, expected.key, expected.federation)
        update = decode_from_device(opened.inner)
    except WireError as error:
        raise Unfit(f"{error.code}: {error}") from error
    if not isinstance(update, Update):
        raise Unfit("type: the sealed document is no update")
    if (update.job, update.request) != (expected.job, expected.request):
        raise Unfit(f"job: sealed for request {update.request} of job {update.job}")
    if update.base != expected.base:
        raise Unfit("base: trained on another model version than the request's")
    if [(vector.name, vector.length) for vector in update.vectors] != [(DELTA, count)]:
        raise Unfit(f"layout: the vectors are not one {DELTA!r} of {count} coordinates")
    encoding = told_encoding(update.encoding)
    if encoding not in (FLOAT32, expected.encoding):
        told, asked = (f"{one.name} (keep {one.keep})" for one in (encoding, expected.encoding))
        raise Unfit(f"encoding: {told} where the job takes {asked} or float32")
    clear = envelope.clear
    got, size = clear.content_bytes if clear.chunks else len(update.inline), encoded_bytes(encoding, count)
    if got != size:
        raise Unfit(f"length: {got} bytes where {size} belong")
    return Opening(update, clear, opened, chunks_at, encoding, size)
