"""Two bytes a coordinate: IEEE 754 binary16 and bfloat16 (the upper half of a binary32), little-endian.

Both are rounded to the nearest, ties to even: not unbiased, and exact to 2⁻¹¹ and 2⁻⁸ of the number. float16
holds what lies between 6·10⁻⁸ and 65,504; what is larger is sent as the largest.
bfloat16 has float32's range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536
FLOAT16_MAX = 65_504.0
BFLOAT16_MAX = 0x7F7F  # the bits of the largest finite one


def encode_float16(values: NDArray[np.float32]) -> bytes:
    """Two bytes for each of ``values``."""
    out = np.empty(len(values), "<f2")
    for at in range(0, len(values), BLOCK):
        out[at : at + BLOCK] = np.clip(values[at : at + BLOCK], -FLOAT16_MAX, FLOAT16_MAX)
    return out.tobytes()


def decode_float16(data: bytes | bytearray | memoryview, out: NDArray[np.float32]) -> None:
    """Exact: every binary16 is a binary32."""
    out[:] = np.frombuffer(data, "<f2")


def encode_bfloat16(values: NDArray[np.float32]) -> bytes:
    """Two bytes for each of ``values``, which are finite."""
    out = np.empty(len(values), "<u2")
    for at in range(0, len(values), BLOCK):
        bits = values[at : at + BLOCK].astype("<f4").view("<u4").astype(np.uint64)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        out[at : at + BLOCK] = np.where(rounded & 0x7FFF > BFLOAT16_MAX, rounded - 1, rounded)
    return out.tobytes()


def decode_bfloat16(data: bytes | bytearray | memoryview, out: NDArray[np.float32]) -> None:
    """Exact: zeros take the place of the lower half."""
    upper = np.frombuffer(data, "<u2")
    for at in range(0, len(out), BLOCK):
        out[at : at + BLOCK] = (upper[at : at + BLOCK].astype("<u4") << 16).view("<f4")
