"""Updates into a model: open, check, add. Memory is O(parameters), however many updates there are.

The mean change of a round is Δ = Σ nₖ·δₖ / Σ nₖ over the folded updates, nₖ the samples of device k and δₖ
its change, unless the job weighs them otherwise; the job's server optimiser moves the model by it (both in
``coordinator.strategies``). Updates are added in log order in float64, elementwise, one multiply and one add
each; so the same log gives the same bits on every machine (ARCHITECTURE.md, "Bit-determinism").
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from broker.ports import File
from compressors import decode
from coordinator.opening import Expected, Opening, Part, Unfit, bound
from coordinator.strategies import Aggregation, Moments, ServerOptimiser, Told, Updates, Weight
from coordinator.strategies.scaffold import follow
from schemas.errors import WireError
from schemas.events import Update
from schemas.limits import CHUNK_OVERHEAD_BYTES, MIB
from schemas.models import Layout
from schemas.sealing import chunk_open_into

BLOCK = 65_536  # coordinates at a time: their float64 copies stay in the processor's cache
HALVES_BYTES_MIN = 2 * MIB  # of content: less is opened sooner than it is handed to another thread


class Folder:
    """Opens, checks and adds updates of one layout, one after the other, in the same buffers.

    `read` does it in one go; `begin`, `open_part` for each part, in threads of their own if need be, and
    `end` come to the same bits: each part has chunks and coordinates of its own, and what its blocks measure
    is added up in the order of the chunks. An opening that fails or is never ended leaves no trace.

    Peak memory: 4 bytes per parameter for the open update, and beside it what it takes encoded, if it is, at
    most 2 (top-k of half the coordinates: 4); 8 for the sum; at the end 8 for the model, and 4 for each
    vector that the server optimiser keeps; 8 more for the sum and the end with SCAFFOLD.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._count = layout.trained_count
        self._open: NDArray[np.float32] = np.empty(self._count, dtype="<f4")
        self._sum: NDArray[np.float64] = np.zeros(self._count)
        self._blocks = [np.empty(min(BLOCK, self._count))]  # scratch space of each part
        self._sealed = [bytearray()]
        self._encoded: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._parts: list[Part] = []  # of the update that is being opened
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
        opening = self.begin(file, expected)
        for part in opening.parts:
            self.open_part(file, opening, part)
        return self.end(opening)

    def begin(self, file: File, expected: Expected, *, halves: bool = False) -> Opening:
        """Bind an update to its request; a large one in two parts, if in ``halves``. Raises `Unfit`."""
        opening = bound(file, expected, self._count)
        if self._parts:
            self._settle()  # an opening was cancelled, with the update before it added in part
        if not opening.plain and len(self._encoded) < opening.encoded_bytes:
            self._encoded = np.empty(opening.encoded_bytes, np.uint8)
        chunks, width = opening.clear.chunks, opening.clear.chunk_bytes
        half, middle = chunks, self._count
        # A coordinate that two chunks share would be of both parts.
        if halves and chunks > 1 and opening.clear.content_bytes >= HALVES_BYTES_MIN and not width % 4:
            half = chunks // 2
            middle = half * width // 4 if opening.plain else self._count // 2
        opening.parts.append(self._part(0, range(half), range(middle), width))
        if half < chunks:
            opening.parts.append(self._part(1, range(half, chunks), range(middle, self._count), width))
        self._parts = opening.parts
        return opening

    def _part(self, number: int, chunks: range, coordinates: range, width: int) -> Part:
        if number == len(self._blocks):
            self._blocks.append(np.empty_like(self._blocks[0]))
            self._sealed.append(bytearray())
        if len(self._sealed[number]) < width + CHUNK_OVERHEAD_BYTES:
            self._sealed[number] = bytearray(width + CHUNK_OVERHEAD_BYTES)
        sealed = memoryview(self._sealed[number])
        return Part(chunks, coordinates.start, coordinates.stop, self._blocks[number], sealed)

    def open_part(self, file: File, opening: Opening, part: Part) -> None:
        """Open the chunks of a part, and add its coordinates of the update before. What is wrong is kept for
        `end`, so that it doesn't depend on which part finds something first."""
        try:
            self._open_chunks(file, opening, part)
        except WireError as error:
            part.problem = Unfit(f"{error.code}: {error}")
        except (Unfit, OSError) as error:
            part.problem = error

    def _open_chunks(self, file: File, opening: Opening, part: Part) -> None:
        clear, opened = opening.clear, opening.opened
        out = self._out(opening)
        for index in part.chunks:
            start, plain = index * clear.chunk_bytes, clear.chunk_size(index)
            self._settle_until(part, -(-(start + plain) // 4) if opening.plain else part.stop)
            sealed = part.sealed[: plain + CHUNK_OVERHEAD_BYTES]
            at = opening.chunks_at + index * (clear.chunk_bytes + CHUNK_OVERHEAD_BYTES)
            if file.read_into(at, sealed) != len(sealed):
                raise Unfit("length: the stored update is cut short")
            chunk_open_into(
                opened.key, index, clear.chunks, sealed, opened.context, out[start : start + plain]
            )
            if opening.plain:
                self._measure(part, -(-start // 4), (start + plain) // 4)  # while it is in the cache
                if start % 4:
                    self._measure(part, start // 4, start // 4 + 1)  # the coordinate that two chunks share

    def end(self, opening: Opening) -> Update:
        """What was opened in parts, measured. Raises `Unfit` or OSError of the first chunk that has one."""
        parts, clear, update = opening.parts, opening.clear, opening.update
        self._settle()
        for part in parts:
            if part.problem:
                raise part.problem
        out = self._out(opening)
        if not clear.chunks:
            out[:] = update.inline
        if not opening.plain:
            try:
                decode(opening.encoding, out, self._open)
            except WireError as error:
                raise Unfit(f"{error.code}: {error}") from error
        if not (opening.plain and clear.chunks):
            self._measure(parts[0], 0, self._count)
        self._squares = self._parted = 0.0
        for part in parts:
            for squares in part.squares:  # one after the other: `sum` rounds otherwise from Python 3.12 on
                self._squares += squares
            for parted in part.parted:
                self._parted += parted
        # update.content is the device's own claim, for comparing runs; the AEAD binds the bytes already, and
        # one more digest would cost as much as opening them.
        return update

    def _out(self, opening: Opening) -> memoryview:
        """Where the content belongs."""
        if opening.plain:
            return self._open.data.cast("B")
        return self._encoded.data[: opening.encoded_bytes]

    def _measure(self, part: Part, begin: int, end: int) -> None:
        """Keep the squares of some coordinates, each of which is measured once."""
        scratch = part.block.view(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are found in the sum
            for start in range(begin, end, BLOCK):
                values = self._open[start : min(start + BLOCK, end)]
                block = scratch[: len(values)]
                np.multiply(values, values, out=block)
                part.squares.append(float(block.sum()))
                if self.centre is not None:
                    np.subtract(values, self.centre[start : start + len(values)], out=block)
                    np.multiply(block, block, out=block)
                    part.parted.append(float(block.sum()))

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
        for part in self._parts or [Part(range(0), 0, self._count, self._blocks[0])]:
            self._settle_until(part, part.stop)
        self._owed, self._parts = 0.0, []

    def _settle_until(self, part: Part, stop: int) -> None:
        """Add a part's coordinates of the update before, up to ``stop``, where that wasn't done yet."""
        if not self._owed:
            return
        for start in range(part.added, stop, BLOCK):
            end = min(start + BLOCK, stop)
            block = part.block[: end - start]
            total = self._sum[start:end]
            np.copyto(block, self._open[start:end])
            np.multiply(block, self._owed, out=block)
            np.add(total, block, out=total)
            if len(self._controls):
                controls = self._controls[start:end]
                np.copyto(block, self._open[start:end])
                np.multiply(block, self._owed_control, out=block)
                np.add(controls, block, out=controls)
            part.added = end

    def total(self) -> NDArray[np.float64]:
        """The sum of the weighted changes; another's after the next `add`."""
        self._settle()
        return self._sum

    def finish(
        self, base: bytes | memoryview, optimiser: ServerOptimiser, moments: Moments, population: int = 0
    ) -> memoryview:
        """The next model's bytes: ``base`` with its trained part moved by what ``optimiser`` makes of the
        weighted mean. ``moments`` is what it keeps (`coordinator.strategies.begun`), and changed in place.
        ``population`` is how many devices there are, for SCAFFOLD."""
        self._settle()
        # NumPy lets other threads run while it copies; bytearray(base) stops the event loop for as long.
        model = np.frombuffer(base, np.uint8).copy().data
        trained = np.frombuffer(model, dtype="<f4", count=self._count)
        divisor = self._divisor or float(self.samples)
        effort, drawn = self.efforts / divisor, self.drawn / divisor
        finite = True
        with np.errstate(over="ignore", invalid="ignore"):  # found by their results
            for start in range(0, self._count, BLOCK):
                part, kept = trained[start : start + BLOCK], moments[:, start : start + BLOCK]
                block = self._blocks[0][: len(part)]
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

    def _follow(self, model: memoryview, population: int) -> bool:
        """Bring the model's control variates, if there are any, up to date; whether float32 holds them."""
        count = len(self._controls)
        controls = np.frombuffer(model, dtype="<f4", count=count, offset=4 * self._count if count else 0)
        share = min(self.folded / max(population, 1), 1.0)
        for start in range(0, count, BLOCK):
            part = controls[start : start + BLOCK]
            block = self._blocks[0][: len(part)]
            np.divide(self._controls[start : start + BLOCK], float(self.samples), out=block)
            exact = part.astype(np.float64)
            follow(exact, block, share)
            np.copyto(part, exact, casting="same_kind")
        return bool(np.isfinite(controls).all())

    def clear(self) -> None:
        """Start the next round with the same buffers."""
        self._sum.fill(0.0)
        self._controls.fill(0.0)
        self._parts = []
        self._owed = self._divisor = self.drawn = 0.0
        self.centre = None
        self.samples = 0
        self.efforts = 0.0
        self.folded = 0
