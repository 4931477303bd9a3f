"""Updates into a model: open, check, add. Memory is O(parameters), however many updates there are.

The mean change of a round is Δ = Σ nₖ·δₖ / Σ nₖ over the folded updates, nₖ the samples of device k and δₖ
its change, unless the job weighs them otherwise; the job's server optimiser moves the model by it (both in
``coordinator.strategies``). Updates are added in log order in float64, elementwise, one multiply and one add
each; so the same log gives the same bits on every machine (ARCHITECTURE.md, "Bit-determinism").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from broker.bodies import Bodies
from broker.ports import File
from coordinator.strategies import Aggregation, Moments, ServerOptimiser, Told, Updates, Weight
from schemas.envelope import LENGTH, Clear, Envelope, Opened, open_envelope, parse
from schemas.errors import Malformed, WireError
from schemas.events import Update, decode_from_device
from schemas.keys import BoxKey
from schemas.limits import BODY_BYTES_MAX, CHUNK_OVERHEAD_BYTES, HEADER_BYTES_MAX
from schemas.models import DELTA, Layout
from schemas.sealing import chunk_open_into

STORED_BYTES_MAX = BODY_BYTES_MAX + 2 * HEADER_BYTES_MAX
BLOCK = 65_536  # coordinates at a time: their float64 copies stay in the processor's cache


class Unfit(Exception):
    """An update that cannot be folded. The text starts with the kind of fault: recorded as its verdict."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the update that answers one request must be; signed by ``signer``, unless that was looked at."""

    federation: bytes
    job: str
    request: int
    base: bytes
    layout: Layout
    key: BoxKey
    signer: bytes = b""


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


class Folder:
    """Opens, checks and adds updates of one layout, one after the other, in the same buffers.

    Peak memory: 4 bytes per parameter for the open update, 8 for the sum; at the end 8 for the
    model, and 4 for each vector that the server optimiser keeps.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._count = layout.trained_count
        self._open: NDArray[np.float32] = np.empty(self._count, dtype="<f4")
        self._sum: NDArray[np.float64] = np.zeros(self._count)
        self._block: NDArray[np.float64] = np.empty(min(BLOCK, self._count))
        self._sealed = bytearray()
        self._squares = self._parted = (
            0.0  # of the open update's coordinates, and of their way from the centre
        )
        self.centre: NDArray[np.float32] | None = None
        """What changes are clipped around, where that is not 0; until `clear`."""
        self._owed = 0.0  # weight of the open update, if it is to be added
        self._divisor = 0.0  # of the sum; 0: all samples
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
        try:
            self._fill(file, chunks_at, envelope.clear, opened, update)
        except WireError as error:
            raise Unfit(f"{error.code}: {error}") from error
        # update.content is the device's own claim, for comparing runs; the AEAD binds the bytes already, and
        # one more digest would cost as much as opening them.
        return update

    def _fill(self, file: File, at: int, clear: Clear, opened: Opened, update: Update) -> None:
        out = self._open.data.cast("B")
        got = clear.content_bytes if clear.chunks else len(update.inline)
        if got != len(out):
            raise Unfit(f"length: {got} bytes where {len(out)} belong")
        self._squares = self._parted = 0.0
        if not clear.chunks:
            out[:] = update.inline
            self._measure(0, self._count)
            return
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
        self._owed = weight.of_change
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

    def total(self) -> NDArray[np.float64]:
        """The sum of the weighted changes; another's after the next `add`."""
        self._settle()
        return self._sum

    def finish(self, base: bytes | bytearray, optimiser: ServerOptimiser, moments: Moments) -> bytearray:
        """The next model's bytes: ``base`` with its trained part moved by what ``optimiser`` makes of the
        weighted mean. ``moments`` is what it keeps (`coordinator.strategies.begun`), and changed in place."""
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
        self.overflowed = not finite
        return model

    def clear(self) -> None:
        """Start the next round with the same buffers."""
        self._sum.fill(0.0)
        self._owed = self._divisor = self.drawn = 0.0
        self.centre = None
        self.samples = 0
        self.efforts = 0.0
        self.folded = 0


@dataclass(slots=True)
class Looked:
    """What opening an update showed. ``problem`` is empty when nothing speaks against folding it."""

    problem: str = ""
    norm: float = 0.0
    distance: float = 0.0
    update: Update | None = field(default=None)


def look(folder: Folder, bodies: Bodies, digest: bytes, expected: Expected) -> Looked:
    """Open and check the stored update ``digest``; it stays in the folder's buffer. Blocking."""
    file = bodies.open(stored_name(expected.key.id, digest))
    try:
        update = folder.read(file, expected)
    except Unfit as error:
        return Looked(problem=str(error))
    finally:
        file.close()
    norm = folder.norm()
    if not math.isfinite(norm):
        return Looked("finite: the update holds NaN, infinity or numbers beyond 1e19", 0.0, 0.0, update)
    return Looked("", norm, folder.distance(), update)
