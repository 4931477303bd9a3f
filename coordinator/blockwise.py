"""A round's updates, opened again by blocks of coordinates, for rules that see all of them at once.

They stay sealed in ``bodies/``; of an update in chunks only those are opened that a block touches. A block is
as long as a chunk, or shorter where many updates would take more than `HELD_BYTES_MAX` together: their chunks
are then opened once for each block that they touch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.bodies import Bodies
from broker.ports import File
from coordinator.facts import Leaning
from coordinator.opening import Expected, Unfit
from coordinator.state import Request
from coordinator.stored import read_envelope, stored_name
from coordinator.strategies import Told
from coordinator.strategies.optimiser import Floats
from coordinator.strategies.robust import PIECE
from schemas.envelope import Clear, open_envelope
from schemas.errors import WireError
from schemas.events import Update, decode_from_device
from schemas.limits import CHUNK_BYTES_DEFAULT, CHUNK_OVERHEAD_BYTES
from schemas.sealing import chunk_open_into

HELD_BYTES_MAX: Final = 128 * 1_048_576
"""Of all updates' coordinates in a block, unless there are more than 32,768 updates."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An update that was opened and checked before, and what it is multiplied by."""

    digest: bytes
    expected: Expected
    scale: float = 1.0


def leanings(requests: Sequence[Request], told: Told) -> list[Leaning]:
    """As they are recorded."""
    return [
        Leaning(request.device, request.number, cosine, place not in told.left_out)
        for place, (request, cosine) in enumerate(zip(requests, told.cosines, strict=True))
    ]


class Blockwise:
    """`coordinator.strategies.robust.Updates` of ``count`` coordinates, from their bodies.

    Raises `coordinator.fold.Unfit` where one cannot be read any more, OSError.
    """

    def __init__(self, bodies: Bodies, updates: Sequence[Stored], count: int) -> None:
        self._bodies = bodies
        self._updates = [_Reader(bodies, update) for update in updates]
        self._count = count
        self.scales: Floats = np.array([update.scale for update in updates])

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        width = self._width()
        held: NDArray[np.float32] = np.empty((len(self._updates), width), dtype="<f4")
        for start in range(0, self._count, width):
            block = held[:, : min(width, self._count - start)]
            for update, row in zip(self._updates, block, strict=True):
                update.read(4 * start, row.data.cast("B"), 4 * self._count)
            yield start, block

    def _width(self) -> int:
        width = CHUNK_BYTES_DEFAULT // 4
        while width > PIECE and 4 * width * len(self._updates) > HELD_BYTES_MAX:
            width //= 2
        return min(width, -(-self._count // PIECE) * PIECE)


class _Reader:
    """One update. What opens its chunks is kept; what travelled inside the body is not."""

    def __init__(self, bodies: Bodies, update: Stored) -> None:
        self._bodies = bodies
        self._update = update
        self._opens: tuple[Clear, bytes, bytes, int] | None = None  # with key and context

    def read(self, start: int, out: memoryview, whole: int) -> None:
        """Bytes of its content from ``start`` on, of ``whole``."""
        expected = self._update.expected
        with closing(self._bodies.open(stored_name(expected.key.id, self._update.digest))) as file:
            try:
                inline = self._begin(file, whole)
                if inline:
                    out[:] = inline[start : start + len(out)]
                else:
                    self._chunks(file, start, out)
            except WireError as error:
                raise Unfit(f"{error.code}: {error}") from error

    def _begin(self, file: File, whole: int) -> bytes:
        """What travelled in the body; nothing if it came in chunks."""
        if self._opens:
            return b""
        expected = self._update.expected
        envelope, chunks_at = read_envelope(file)
        opened = open_envelope(envelope, expected.key, expected.federation)
        update = decode_from_device(opened.inner)
        inline = update.inline if isinstance(update, Update) else b""
        if (len(inline) or envelope.clear.content_bytes) != whole:
            raise Unfit(f"length: not the {whole} bytes that belong")
        if not inline:
            self._opens = envelope.clear, opened.key, opened.context, chunks_at
        return inline

    def _chunks(self, file: File, start: int, out: memoryview) -> None:
        if self._opens is None:
            return
        clear, key, context, at = self._opens
        stop, size = start + len(out), clear.chunk_bytes
        for index in range(start // size, -(-stop // size)):
            plain = clear.chunk_size(index)
            sealed = memoryview(bytearray(plain + CHUNK_OVERHEAD_BYTES))
            if file.read_into(at + index * (size + CHUNK_OVERHEAD_BYTES), sealed) != len(sealed):
                raise Unfit("length: the stored update is cut short")
            chunk = memoryview(bytearray(plain))
            chunk_open_into(key, index, clear.chunks, sealed, context, chunk)
            begin = index * size
            first, last = max(start, begin), min(stop, begin + plain)
            out[first - start : last - start] = chunk[first - begin : last - begin]
