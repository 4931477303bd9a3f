"""Flat float32 vectors in fewer bytes: a small pure module for each family of encodings.

Encoding is a device's matter and may differ between machines. Decoding may not, because a replay decodes
again: it uses elementwise multiply, add and subtract in float32, and lookups, which are alike everywhere.
What an encoding takes is known beforehand (`schemas.encodings.encoded_bytes`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressors import eden, half, quantised, topk
from schemas.encodings import Encoding, encoded_bytes
from schemas.errors import Malformed

Floats = NDArray[np.float32]
Encoded = bytes | bytearray | memoryview


def encode(encoding: Encoding, values: Floats, seed: int) -> bytes:
    """``values`` in an encoding; what is random in it comes from ``seed`` (below 2⁶⁴). Raises `Malformed` for
    an encoding that so many coordinates cannot have."""
    encoded_bytes(encoding, len(values))
    match encoding.name:
        case "float32":
            return values.astype("<f4").tobytes()
        case "float16":
            return half.encode_float16(values)
        case "bfloat16":
            return half.encode_bfloat16(values)
        case "q8" | "q4":
            return quantised.encode(encoding, values, seed)
        case "topk":
            return topk.encode(values, encoding.keep)
    return eden.encode(encoding, values, seed)


def decode(encoding: Encoding, data: Encoded, out: Floats) -> None:
    """Write what ``data`` stands for into ``out``. Whatever its bytes are, nothing but numbers comes of it:
    they may be infinite or NaN. Raises `Malformed` for data of another size, and for places of top-k that do
    not rise or lie outside."""
    if len(data) != encoded_bytes(encoding, len(out)):
        raise Malformed(f"{len(data)} bytes where {encoded_bytes(encoding, len(out))} belong")
    with np.errstate(over="ignore", invalid="ignore"):  # the reader looks at the numbers
        match encoding.name:
            case "float32":
                out[:] = np.frombuffer(data, "<f4")
            case "float16":
                half.decode_float16(data, out)
            case "bfloat16":
                half.decode_bfloat16(data, out)
            case "q8" | "q4":
                quantised.decode(encoding, data, out)
            case "topk":
                topk.decode(data, out)
            case _:
                eden.decode(encoding, data, out)
