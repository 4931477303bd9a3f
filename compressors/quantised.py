"""8 and 4 bits a coordinate, rounded at random so that the mean is right: QSGD (Alistarh et al. 2017,
"QSGD: communication-efficient SGD via gradient quantization and encoding", section 3.1), by blocks and with
the largest coordinate in place of the norm, as in its section 5.

With L = 127 or 7 levels, and s = max|x| / L of each block of 1,024 coordinates:

    q = ⌊x / s + u⌋, u uniform in [0, 1);  x̂ = s·q,  E[x̂] = x,  |x̂ - x| < s

Data: the blocks' s, float32; then the q: int8, or two to a byte, q + 8 each, the first in the lower half. All
little-endian. A half byte that is left over is ignored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressors.draw import Draw
from schemas.encodings import QUANTISED_BLOCK, SCALE_BYTES, Encoding, bits_of

GROUP = 64 * QUANTISED_BLOCK  # coordinates at a time


def encode(encoding: Encoding, values: NDArray[np.float32], seed: int) -> bytes:
    """``values``, which are finite, in 8 or 4 bits each."""
    bits, draw = bits_of(encoding), Draw(seed)
    levels = 2 ** (bits - 1) - 1
    scales, codes = [], []
    for at in range(0, len(values), GROUP):
        part = values[at : at + GROUP]
        blocks = _blocks(part).astype(np.float64)
        scale = (np.abs(blocks).max(axis=1) / levels).astype("<f4")
        # Rounded up, or the largest coordinate would lie above the highest level.
        scale = np.where(scale * np.float64(levels) < np.abs(blocks).max(axis=1), _above(scale), scale)
        exact = blocks / np.where(scale > 0, scale, 1.0).astype(np.float64)[:, None]
        level = np.floor(exact + draw.fractions(exact.size).reshape(exact.shape))
        code = np.clip(level, -levels, levels).astype(np.int8).reshape(-1)[: len(part)]
        scales.append(scale.astype("<f4").tobytes())
        codes.append(code.tobytes() if bits == 8 else _pairs(code))
    return b"".join(scales + codes)


def decode(encoding: Encoding, data: bytes | bytearray | memoryview, out: NDArray[np.float32]) -> None:
    """One multiplication for each coordinate."""
    bits, count = bits_of(encoding), len(out)
    scales = np.frombuffer(data, "<f4", -(-count // QUANTISED_BLOCK))
    codes = np.frombuffer(data, np.uint8, offset=len(scales) * SCALE_BYTES)
    for at in range(0, count, GROUP):
        size = min(GROUP, count - at)
        code = codes[at * bits // 8 : -(-(at + size) * bits // 8)]
        level = code.view(np.int8) if bits == 8 else _unpaired(code)[:size]
        scale = np.repeat(scales[at // QUANTISED_BLOCK :][: -(-size // QUANTISED_BLOCK)], QUANTISED_BLOCK)
        np.multiply(level.astype(np.float32), scale[:size], out=out[at : at + size])


def _blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(blocks, 1024), the last one filled up with zeros."""
    whole = np.zeros(-(-len(values) // QUANTISED_BLOCK) * QUANTISED_BLOCK, np.float32)
    whole[: len(values)] = values
    return whole.reshape(-1, QUANTISED_BLOCK)


def _above(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.nextafter(scale, np.float32(np.inf))


def _pairs(code: NDArray[np.int8]) -> bytes:
    nibbles = np.zeros(-(-len(code) // 2) * 2, np.uint8)
    nibbles[: len(code)] = code + 8
    return (nibbles[::2] | nibbles[1::2] << 4).tobytes()


def _unpaired(code: NDArray[np.uint8]) -> NDArray[np.int8]:
    nibbles = np.empty(2 * len(code), np.uint8)
    nibbles[::2], nibbles[1::2] = code & 15, code >> 4
    return nibbles.view(np.int8) - np.int8(8)
