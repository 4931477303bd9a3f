"""Updates into a model: open, check, add. Memory is O(parameters), however many updates there are.

The mean change of a round is Δ = Σ nₖ·δₖ / Σ nₖ over the folded updates, nₖ the samples of device k and δₖ
its change, unless the job weighs them otherwise; the job's server optimiser moves the model by it (both in
``coordinator.strategies``). Updates are added in log order in float64, elementwise, one multiply and one add
each; so the same log gives the same bits on every machine (ARCHITECTURE.md, "Bit-determinism").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.ports import File
from compressors import decode
from coordinator.stored import read_envelope
from coordinator.strategies import Aggregation, Moments, ServerOptimiser, Told, Updates, Weight
from coordinator.strategies.scaffold import follow
from schemas.encodings import FLOAT32, Encoding, encoded_bytes, told_encoding
from schemas.envelope import Clear, Opened, open_envelope
from schemas.errors import WireError
from schemas.events import Update, decode_from_device
from schemas.keys import BoxKey
from schemas.limits import CHUNK_OVERHEAD_BYTES
from schemas.models import DELTA, Layout
from schemas.sealing import chunk_open_into

BLOCK = 65_536  # coordinates at a time: their float64 copies stay in the processor's cache


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


class Folder:
    """Opens, checks and adds updates of one layout, one after the other, in the same buffers.

    Peak memory: 4 bytes per parameter for the open update, and beside it what it takes encoded, if it is, at
    most 2 (top-k of half the coordinates: 4); 8 for the sum; at the end 8 for the model, and 4 for each
    vector that the server optimiser keeps; 8 more for the sum and the end with SCAFFOLD.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._count = layout.trained_count
        self._open: NDArray[np.float32] = np.empty(self._count, dtype="<f4")
        self._sum: NDArray[np.float64] = np.zeros(self._count)
        self._block: NDArray[np.float64] = np.empty(min(BLOCK, self._count))
        self._encoded = bytearray()
        self._sealed = bytearray()
        self._squares = self._parted = 0.0  # of the open update's coordinates; of their way from the centre
        self.centre: NDArray[np.float32] | None = None
        """What changes are clipped around, where that is not 0; until `clear`."""
        self._owed = 0.0  # weight of the open update, if it is to be added
        self._divisor = 0.0  # of the sum; 0: all samples
        self._controls: NDArray[np.float64] = np.zeros(layout.control_count)  # Σ nₖ·δₖ / (Kₖ·η), for SCAFFOLD
        self._owed_control = 0.0
        self.samples = 0
        self.efforts = 0.0
        """Σ nₖ·aₖ of ``coordinator.strategies.weighing``."""
        self.drawn = 0.0
        """Σ of what of the samples counts for the centre."""
        self.folded = 0
        self.overflowed = False
        """Whether the last `finish` made numbers that float32 does not hold."""

    def read(self, file: File, expected: Expected) -> Update:
        """Open an update into the buffer and bind it to its request. Raises `Unfit`."""
        self._settle()
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
        if [(vector.name, vector.length) for vector in update.vectors] != [(DELTA, self._count)]:
            raise Unfit(f"layout: the vectors are not one {DELTA!r} of {self._count} coordinates")
        encoding = told_encoding(update.encoding)
        if encoding not in (FLOAT32, expected.encoding):
            told, asked = (f"{one.name} (keep {one.keep})" for one in (encoding, expected.encoding))
            raise Unfit(f"encoding: {told} where the job takes {asked} or float32")
        try:
            self._fill(file, chunks_at, envelope.clear, opened, update)
        except WireError as error:
            raise Unfit(f"{error.code}: {error}") from error
        # update.content is the device's own claim, for comparing runs; the AEAD binds the bytes already, and
        # one more digest would cost as much as opening them.
        return update

    def _fill(self, file: File, at: int, clear: Clear, opened: Opened, update: Update) -> None:
        encoding = told_encoding(update.encoding)
        plain = encoding == FLOAT32
        got = clear.content_bytes if clear.chunks else len(update.inline)
        size = encoded_bytes(encoding, self._count)
        if got != size:
            raise Unfit(f"length: {got} bytes where {size} belong")
        self._squares = self._parted = 0.0
        if not plain and len(self._encoded) < size:
            self._encoded = bytearray(size)
        out = self._open.data.cast("B") if plain else memoryview(self._encoded)[:size]
        if not clear.chunks:
            out[:] = update.inline
        else:
            self._open_chunks(file, at, clear, opened, out, measured=plain)
        if not plain:
            decode(encoding, out, self._open)
        if not (plain and clear.chunks):
            self._measure(0, self._count)

    def _open_chunks(
        self, file: File, at: int, clear: Clear, opened: Opened, out: memoryview, *, measured: bool
    ) -> None:
        if len(self._sealed) < clear.chunk_bytes + CHUNK_OVERHEAD_BYTES:
            self._sealed = bytearray(clear.chunk_bytes + CHUNK_OVERHEAD_BYTES)
        for index in range(clear.chunks):
            plain = clear.chunk_size(index)
            sealed = memoryview(self._sealed)[: plain + CHUNK_OVERHEAD_BYTES]
            if file.read_into(at, sealed) != len(sealed):
                raise Unfit("length: the stored update is cut short")
            start = index * clear.chunk_bytes
            chunk_open_into(
                opened.key, index, clear.chunks, sealed, opened.context, out[start : start + plain]
            )
            if measured:
                self._measure(-(-start // 4), (start + plain) // 4)  # while it is in the processor's cache
                if start % 4:
                    self._measure(start // 4, start // 4 + 1)  # the coordinate that the two chunks share
            at += len(sealed)

    def _measure(self, begin: int, end: int) -> None:
        """Add the squares of some coordinates, each of which is measured once."""
        squares = self._block.view(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are found in the sum
            for start in range(begin, end, BLOCK):
                part = self._open[start : min(start + BLOCK, end)]
                block = squares[: len(part)]
                np.multiply(part, part, out=block)
                self._squares += float(block.sum())
                if self.centre is not None:
                    np.subtract(part, self.centre[start : start + len(part)], out=block)
                    np.multiply(block, block, out=block)
                    self._parted += float(block.sum())

    def norm(self) -> float:
        """The L2 norm of the open update; inf or nan unless every coordinate is finite and below 1e19.

        Squares and block sums in float32, the sum over blocks in float64: right to about 1e-6.
        """
        return math.sqrt(self._squares) if math.isfinite(self._squares) else self._squares

    def distance(self) -> float:
        """The L2 norm of its difference to the centre, measured alike; 0 without a centre."""
        return math.sqrt(self._parted) if math.isfinite(self._parted) else self._parted

    @property
    def opened(self) -> NDArray[np.float32]:
        """The open update's coordinates; another's after the next `read`."""
        return self._open

    def add(self, weight: Weight) -> None:
        """Fold the open update. Cheap: the sum is made with the next call that blocks anyway, so that callers
        need no thread for this one."""
        self._owed, self._owed_control = weight.of_change, weight.of_control
        self.drawn += weight.of_centre
        self.samples += weight.samples
        self.efforts += weight.samples * weight.effort
        self.folded += 1

    def count(self, weight: Weight) -> None:
        """Instead of `add`, for an update that `aggregate` will read again."""
        self.samples += weight.samples
        self.folded += 1

    def aggregate(self, rule: Aggregation, updates: Updates) -> Told:
        """Have ``rule`` make Δ of the round's updates, in place of the weighted mean."""
        self._owed, self._divisor, self.efforts = 0.0, 1.0, 1.0
        return rule(updates, self._sum)

    def _settle(self) -> None:
        weight, self._owed = self._owed, 0.0
        if not weight:
            return
        for start in range(0, self._count, BLOCK):
            part = self._open[start : start + BLOCK]
            block = self._block[: len(part)]
            total = self._sum[start : start + BLOCK]
            np.copyto(block, part)
            np.multiply(block, weight, out=block)
            np.add(total, block, out=total)
            if len(self._controls):
                controls = self._controls[start : start + BLOCK]
                np.copyto(block, part)
                np.multiply(block, self._owed_control, out=block)
                np.add(controls, block, out=controls)

    def total(self) -> NDArray[np.float64]:
        """The sum of the weighted changes; another's after the next `add`."""
        self._settle()
        return self._sum

    def finish(
        self, base: bytes | bytearray, optimiser: ServerOptimiser, moments: Moments, population: int = 0
    ) -> bytearray:
        """The next model's bytes: ``base`` with its trained part moved by what ``optimiser`` makes of the
        weighted mean. ``moments`` is what it keeps (`coordinator.strategies.begun`), and changed in place.
        ``population`` is how many devices there are, for SCAFFOLD."""
        self._settle()
        model = bytearray(base)
        trained = np.frombuffer(model, dtype="<f4", count=self._count)
        divisor = self._divisor or float(self.samples)
        effort, drawn = self.efforts / divisor, self.drawn / divisor
        finite = True
        with np.errstate(over="ignore", invalid="ignore"):  # found by their results
            for start in range(0, self._count, BLOCK):
                part, kept = trained[start : start + BLOCK], moments[:, start : start + BLOCK]
                block = self._block[: len(part)]
                np.divide(self._sum[start : start + BLOCK], divisor, out=block)
                np.multiply(block, effort, out=block)
                if self.centre is not None:
                    np.add(block, self.centre[start : start + BLOCK].astype(np.float64) * drawn, out=block)
                exact = kept.astype(np.float64)
                optimiser.step(block, exact)
                np.copyto(kept, exact, casting="same_kind")
                np.add(block, part, out=block)
                np.copyto(part, block, casting="same_kind")
                finite = finite and bool(np.isfinite(part).all() and np.isfinite(kept).all())
            self.overflowed = not (finite and self._follow(model, population))
        return model

    def _follow(self, model: bytearray, population: int) -> bool:
        """Bring the model's control variates, if there are any, up to date; whether float32 holds them."""
        count = len(self._controls)
        controls = np.frombuffer(model, dtype="<f4", count=count, offset=4 * self._count if count else 0)
        share = min(self.folded / max(population, 1), 1.0)
        for start in range(0, count, BLOCK):
            part = controls[start : start + BLOCK]
            block = self._block[: len(part)]
            np.divide(self._controls[start : start + BLOCK], float(self.samples), out=block)
            exact = part.astype(np.float64)
            follow(exact, block, share)
            np.copyto(part, exact, casting="same_kind")
        return bool(np.isfinite(controls).all())

    def clear(self) -> None:
        """Start the next round with the same buffers."""
        self._sum.fill(0.0)
        self._controls.fill(0.0)
        self._owed = self._divisor = self.drawn = 0.0
        self.centre = None
        self.samples = 0
        self.efforts = 0.0
        self.folded = 0
