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
    return np.clip(values, -FLOAT16_MAX, FLOAT16_MAX).astype("<f2").tobytes()


def decode_float16(data: bytes | bytearray | memoryview, out: NDArray[np.float32]) -> None:
    """Exact: every binary16 is a binary32."""
    out[:] = np.frombuffer(data, "<f2")


def encode_bfloat16(values: NDArray[np.float32]) -> bytes:
    """Two bytes for each of ``values``, which are finite."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(rounded & 0x7FFF > BFLOAT16_MAX, rounded - 1, rounded).astype("<u2").tobytes()


def decode_bfloat16(data: bytes | bytearray | memoryview, out: NDArray[np.float32]) -> None:
    """Exact: zeros take the place of the lower half."""
    upper = np.frombuffer(data, "<u2")
    for at in range(0, len(out), BLOCK):
        out[at : at + BLOCK] = (upper[at : at + BLOCK].astype("<u4") << 16).view("<f4")
