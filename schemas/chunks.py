"""Bare chunks: ``"FBC1" ‖ transfer id (16 B) ‖ u32 index ‖ sealed bytes``. Checked by their signed digest."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from schemas.errors import Malformed
from schemas.limits import CHUNK_BYTES_MAX, CHUNK_OVERHEAD_BYTES, CHUNKS_MAX

MAGIC: Final = b"FBC1"
HEAD: Final = struct.Struct(">4s16sI")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk as it came, bound to nothing yet."""

    transfer: bytes
    index: int
    sealed: memoryview


def pack_chunk(transfer: bytes, index: int, sealed: bytes | memoryview) -> bytes:
    """The message that carries a sealed chunk; ``transfer`` has 16 bytes."""
    return HEAD.pack(MAGIC, transfer, index) + sealed


def parse_chunk(data: bytes) -> Chunk:
    """Raises `Malformed`."""
    if len(data) <= HEAD.size + CHUNK_OVERHEAD_BYTES:
        raise Malformed("a truncated chunk")
    magic, transfer, index = HEAD.unpack_from(data)
    if magic != MAGIC or index >= CHUNKS_MAX:
        raise Malformed("not a chunk: wrong magic or index")
    if len(data) > HEAD.size + CHUNK_BYTES_MAX + CHUNK_OVERHEAD_BYTES:
        raise Malformed("an oversized chunk")
    return Chunk(transfer, index, memoryview(data)[HEAD.size :])


def bitmap(have: set[int]) -> bytes:
    """Bit i of byte i//8, lowest first."""
    bits = 0
    for index in have:
        bits |= 1 << index
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def from_bitmap(have: bytes, count: int) -> set[int]:
    """The indices below ``count`` that a bitmap names; bits beyond are ignored."""
    return {index for index in range(min(count, 8 * len(have))) if have[index // 8] >> (index % 8) & 1}
