"""How the change in an update may be encoded, and how many bytes each encoding takes.

The size follows from the encoding and the number of coordinates alone, so that it is checked before a byte is
opened. The numbers themselves are made and read by ``compressors``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from schemas.errors import Malformed

EncodingName = Literal[
    "float32", "float16", "bfloat16", "q8", "q4", "eden1", "eden2", "eden3", "eden4", "topk"
]
QUANTISED_BLOCK: Final = 1_024  # coordinates that share a scale
EDEN_BLOCK: Final = 8_192  # coordinates that are rotated together
EDEN_BLOCK_MIN: Final = 64  # the last ones are filled up to a multiple of it
SCALE_BYTES: Final = 4
SEED_BYTES: Final = 8
KEPT_BYTES: Final = 8  # of a coordinate that top-k sends: where it is, and what

_BITS: Final[dict[str, int]] = {"q8": 8, "q4": 4, "eden1": 1, "eden2": 2, "eden3": 3, "eden4": 4}


class Encoding(msgspec.Struct, frozen=True, array_like=True):
    """One encoding; ``keep`` is the number of coordinates that ``topk`` sends, and 0 for all others."""

    name: EncodingName
    keep: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0


FLOAT32: Final = Encoding("float32")
ENCODINGS: Final[tuple[EncodingName, ...]] = (
    *("float16", "bfloat16", "q8", "q4"),
    *("eden1", "eden2", "eden3", "eden4", "topk"),
)
"""All that a device may offer beside float32, which every device sends."""


def told_encoding(field: Encoding | msgspec.UnsetType) -> Encoding:
    """What a request's or an update's field says."""
    return FLOAT32 if field is msgspec.UNSET else field


def encoded_bytes(encoding: Encoding, count: int) -> int:
    """What ``count`` coordinates take. Raises `Malformed` for an encoding that so many cannot have."""
    name, keep = encoding.name, encoding.keep
    if (keep != 0) != (name == "topk") or keep > count:
        raise Malformed(f"encoding {name} that keeps {keep} of {count} coordinates")
    match name:
        case "float32":
            return 4 * count
        case "float16" | "bfloat16":
            return 2 * count
        case "topk":
            return KEPT_BYTES * keep
        case "q8" | "q4":
            return SCALE_BYTES * -(-count // QUANTISED_BLOCK) + -(-count * _BITS[name] // 8)
    parts = eden_parts(count)
    return SEED_BYTES + sum(blocks * (SCALE_BYTES + _BITS[name] * size // 8) for blocks, size in parts)


def bits_of(encoding: Encoding) -> int:
    """Bits of a coordinate, of the encodings that quantise."""
    return _BITS[encoding.name]


def eden_parts(count: int) -> list[tuple[int, int]]:
    """How ``count`` coordinates are cut for rotation, in order: so many blocks of such a size.

    Sizes are powers of two: as many of `EDEN_BLOCK` as there are, then the rest in binary, down to
    `EDEN_BLOCK_MIN`. So fewer than 64 zeros are added, however many coordinates there are.
    """
    units = -(-count // EDEN_BLOCK_MIN)
    parts = [(units * EDEN_BLOCK_MIN // EDEN_BLOCK, EDEN_BLOCK)]
    size = EDEN_BLOCK // 2
    while size >= EDEN_BLOCK_MIN:
        parts.append((units * EDEN_BLOCK_MIN // size % 2, size))
        size //= 2
    return [(blocks, size) for blocks, size in parts if blocks]
