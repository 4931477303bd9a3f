"""1 to 4 bits a coordinate after a random rotation: EDEN (Vargaftik et al. 2022, "EDEN:
communication-efficient and robust distributed mean estimation for federated learning", algorithm 1); with
1 bit it is DRIVE (the same, 2021, "DRIVE: one-bit distributed mean estimation", algorithm 2).

Rotated, the coordinates of any vector are nearly normal, so the best levels for a normal number fit. By
blocks of d = 64 to 8,192 coordinates (`schemas.encodings.eden_parts`), with H the Walsh-Hadamard matrix of ±1
and D a diagonal of random signs:

    r = H·D·x;  c = the levels nearest to r / ‖x‖;  S = ‖x‖² / ⟨c, r⟩;  x̂ = S·D·H·c

⟨x̂, x⟩ = ‖x‖² always, and the rest averages to zero over the signs (for a uniform rotation; H·D comes so close
that no test here tells them apart). Every encoder draws its own signs, so that errors of devices average out.

Data, little-endian: u64 seed of the signs (`compressors.draw`: one for each coordinate and for each zero that
fills the last block up, in order); each block's S, float32; each block's codes as 1 to 4 planes of d bits,
the lowest plane first, in each the first coordinate's bit lowest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from compressors.draw import Draw
from schemas.encodings import SCALE_BYTES, SEED_BYTES, Encoding, bits_of, eden_parts

GROUP = 65_536  # coordinates at a time: they stay in the processor's cache
Floats = NDArray[np.float32]

# The positive levels of the best quantiser of a normal number (Lloyd 1957, Max 1960): the others mirror them.
_POSITIVE: Final[dict[int, tuple[float, ...]]] = {
    1: (0.7978845608028654,),
    2: (0.4527800398860679, 1.5104176087114887),
    3: (0.24509416307340598, 0.7560052489539643, 1.3439092613750225, 2.151945669890335),
    4: (
        *(0.12839501671105813, 0.38804823445328507, 0.6567589957631145, 0.9423402689122875),
        *(1.2562309480263467, 1.6180460517130526, 2.069016730231837, 2.732588804065177),
    ),
}
LEVELS: Final[dict[int, Floats]] = {
    bits: np.array([*(-level for level in reversed(levels)), *levels], np.float32)
    for bits, levels in _POSITIVE.items()
}


def encode(encoding: Encoding, values: Floats, seed: int) -> bytes:
    """``values``, which are finite, in 1 to 4 bits each."""
    bits, draw = bits_of(encoding), Draw(seed)
    levels = LEVELS[bits]
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    scales, codes = [], []
    for at, blocks, size in _groups(len(values)):
        rows: NDArray[np.floating] = np.zeros((blocks, size))
        part = values[at : at + rows.size]
        rows.reshape(-1)[: len(part)] = part
        squares = (rows * rows).sum(axis=1)
        rows *= draw.signs(rows.size).reshape(rows.shape)
        rows = _transformed(rows)
        lengths = np.sqrt(squares)
        code = np.searchsorted(middles, rows / np.where(lengths > 0, lengths, 1.0)[:, None])
        along = (levels[code] * rows).sum(axis=1)
        scales.append((squares / np.where(along > 0, along, 1.0)).astype("<f4").tobytes())
        codes.append(_planes(code.astype(np.uint8), bits))
    return seed.to_bytes(SEED_BYTES, "little") + b"".join(scales + codes)


def decode(encoding: Encoding, data: bytes | bytearray | memoryview, out: Floats) -> None:
    """A lookup, the transform (additions and subtractions) and two multiplications for each coordinate."""
    bits, draw = bits_of(encoding), Draw(int.from_bytes(data[:SEED_BYTES], "little"))
    levels = LEVELS[bits]
    count = sum(blocks for blocks, _ in eden_parts(len(out)))
    scales = np.frombuffer(data, "<f4", count, offset=SEED_BYTES)
    codes = np.frombuffer(data, np.uint8, offset=SEED_BYTES + SCALE_BYTES * count)
    block = 0
    for at, blocks, size in _groups(len(out)):
        code, codes = np.split(codes, [blocks * size * bits // 8])
        rows = _transformed(levels[_codes(code, bits, size)])
        rows *= scales[block : block + blocks, None]
        rows *= draw.signs(rows.size).reshape(rows.shape)
        part = out[at : at + rows.size]
        part[:] = rows.reshape(-1)[: len(part)]
        block += blocks


def _groups(count: int) -> Iterator[tuple[int, int, int]]:
    """Where they begin, how many blocks, of which size: so many at a time."""
    at = 0
    for blocks, size in eden_parts(count):
        step = GROUP // size
        for first in range(0, blocks, step):
            some = min(step, blocks - first)
            yield at, some, size
            at += some * size


def _transformed(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """H times each row, unnormalised, in log₂ d steps of equal form: sums of neighbours into the first half,
    differences into the second (Pease 1968). ``rows`` is used up."""
    half = rows.shape[1] // 2
    other = np.empty_like(rows)
    for _ in range(half.bit_length()):
        np.add(rows[:, ::2], rows[:, 1::2], out=other[:, :half])
        np.subtract(rows[:, ::2], rows[:, 1::2], out=other[:, half:])
        rows, other = other, rows
    return rows


def _planes(code: NDArray[np.uint8], bits: int) -> bytes:
    planes = np.stack([code >> bit & 1 for bit in range(bits)], axis=1)
    return np.packbits(planes, axis=2, bitorder="little").tobytes()


def _codes(data: NDArray[np.uint8], bits: int, size: int) -> NDArray[np.uint8]:
    planes = np.unpackbits(data, bitorder="little").reshape(-1, bits, size)
    code: NDArray[np.uint8] = planes[:, 0]
    for bit in range(1, bits):
        code = code | (planes[:, bit] << np.uint8(bit))
    return code
