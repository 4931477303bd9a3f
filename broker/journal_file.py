"""The format of a journal's files: header, frames, what counts as a torn tail and what as damage.

docs/journal.md describes it for other programs. Integers little-endian, CRC-32 as in zlib:

- header: magic ``FBJ1``, u32 version, federation id (16 bytes), u32 number of the segment, u64 index of its
  first entry, chain (32 bytes) that it continues, u32 CRC of these;
- frames, one per commit: u32 length of the payload, u32 CRC of the chain that it continues, u32 CRC of these
  eight bytes (so that neither a damaged length nor a moved frame is taken for a torn tail); chain (32 bytes);
  payload, a MessagePack array of byte strings, the entries.

chain(k) = SHA-256(chain(k-1) ‖ payload), across segments; chain(0) = SHA-256(magic ‖ version ‖ federation).
It is a frame's checksum, too: nothing large is read twice. Only who knows a later head can tell that the last
frames are missing.

Only one frame is ever in flight, so what a crash tore is the last frame of the last segment: it is
incomplete, or ends with the file but has a wrong chain, or turns into zeros up to the end of the file.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from broker.ports import File

FRAME_ENTRIES_MAX = 1024
FRAME_BYTES_MAX = 8 << 20
"""Bound for the entries of a frame together, and so for a single one."""
FEDERATION_BYTES = 16
CHAIN_BYTES = 32

_MAGIC = b"FBJ1"
_VERSION = 2
_HEADER = struct.Struct("<4sI16sIQ32s")
_PREFIX = struct.Struct("<II")
_CRC = struct.Struct("<I")
_CHECKED = struct.Struct("<III")  # the prefix, and its CRC
_GENESIS = struct.Struct("<4sI16s")
HEADER_BYTES = _HEADER.size + _CRC.size
_PREFIX_BYTES = _PREFIX.size + _CRC.size
_BODY_AT = _PREFIX_BYTES + CHAIN_BYTES  # in a frame
_PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX + 5 * (FRAME_ENTRIES_MAX + 1)  # 5: MessagePack's longest prefix here
_SCAN_BYTES = 1 << 16

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[bytes])


class JournalError(Exception):
    """Something is wrong with a journal."""


class JournalMissing(JournalError):
    """There is no journal to read."""


class JournalForeign(JournalError):
    """The journal belongs to another federation."""


class JournalDamaged(JournalError):
    """A journal does not hold what was written. ``offset`` (bytes) is where ``what`` was found wrong."""

    def __init__(self, path: Path, offset: int, what: str) -> None:
        remedy = "nothing was changed; restore it from a backup"
        super().__init__(f"journal {path}: damaged at byte {offset}: wrong {what}; {remedy}")
        self.path = path
        self.offset = offset
        self.what = what


@dataclass(frozen=True, slots=True)
class Header:
    """Of a segment: its number, the index of its first entry (both from 1), the chain that it continues."""

    number: int
    first: int
    head: bytes


class Frame(NamedTuple):
    """One commit. ``offset`` and ``end`` are bytes in the file, ``head`` is the chain up to here."""

    offset: int
    end: int
    head: bytes
    entries: list[bytes]


def genesis(federation: bytes) -> bytes:
    """The chain before the first frame. ``federation`` is an id of 16 bytes."""
    return hashlib.sha256(_GENESIS.pack(_MAGIC, _VERSION, federation)).digest()


def encode_header(federation: bytes, header: Header) -> bytes:
    """What a new segment holds."""
    fields = _HEADER.pack(_MAGIC, _VERSION, federation, header.number, header.first, header.head)
    return fields + _CRC.pack(zlib.crc32(fields))


def read_header(file: File, path: Path, federation: bytes) -> Header:
    """The header of the segment at ``path``. Raises `JournalError` as it names."""
    found = file.read_at(0, HEADER_BYTES)
    _refuse_first_format(found, path)
    if len(found) < HEADER_BYTES or found[:4] != _MAGIC:
        raise JournalDamaged(path, 0, "file header")
    _, version, owner, number, first, head = _HEADER.unpack_from(found)
    if zlib.crc32(found[: _HEADER.size]) != _CRC.unpack_from(found, _HEADER.size)[0]:
        raise JournalDamaged(path, 0, "checksum of the file header")
    if version != _VERSION:
        raise JournalError(f"journal {path}: format {version} is unknown here; use the fedbus that wrote it")
    if owner != federation:
        raise JournalForeign(
            f"journal {path}: belongs to federation {owner.hex()}, not {federation.hex()};"
            " use that federation's configuration, or another state directory"
        )
    return Header(number, first, head)


def _refuse_first_format(found: bytes, path: Path) -> None:
    """Format 1 had magic, version and federation only; it was never released."""
    fields = found[: _GENESIS.size]
    if (
        len(found) >= len(fields) + _CRC.size
        and fields[:8] == _MAGIC + _CRC.pack(1)
        and _CRC.unpack_from(found, len(fields))[0] == zlib.crc32(fields)
    ):
        raise JournalError(
            f"journal {path}: has format 1, from before the first release, and this fedbus reads format"
            f" {_VERSION}; use the fedbus that wrote it, or begin with a new state directory"
        )


def frame_start(header: Header) -> Frame:
    """The start of a segment's chain, as a frame without entries."""
    return Frame(0, HEADER_BYTES, header.head, [])


def encode_frame(head: bytes, entries: list[bytes]) -> tuple[memoryview, bytes]:
    """The frame that follows a frame with chain ``head``, and its own chain."""
    buffer = bytearray(_BODY_AT)
    _encoder.encode_into(entries, buffer, _BODY_AT)  # they may be large: copied once
    frame = memoryview(buffer)
    payload = frame[_BODY_AT:]
    hashed = hashlib.sha256(head)
    hashed.update(payload)
    chain = hashed.digest()
    prefix = _PREFIX.pack(len(payload), zlib.crc32(head))
    frame[:_BODY_AT] = prefix + _CRC.pack(zlib.crc32(prefix)) + chain
    return frame, chain


def read_frames(file: File, path: Path, start: Frame, size: int) -> Iterator[Frame]:
    """The frames after ``start`` within the first ``size`` bytes, up to a torn tail.

    Holds one frame in memory. Raises `JournalDamaged`.
    """
    frame: Frame | None = start
    while frame is not None and frame.end < size:
        frame = _read_frame(file, path, frame, size)
        if frame is not None:
            yield frame


def _read_frame(file: File, path: Path, last: Frame, size: int) -> Frame | None:
    """The frame after ``last``; None if it is torn."""
    offset = last.end
    prefix = file.read_at(offset, _PREFIX_BYTES)
    body_offset = offset + _PREFIX_BYTES
    length, continued, own = _CHECKED.unpack(prefix) if len(prefix) == _PREFIX_BYTES else (0, 0, -1)
    if zlib.crc32(prefix[: _PREFIX.size]) != own:
        _refuse_unless_torn(file, path, offset, body_offset, size, "checksum of a frame's length")
        return None
    if continued != zlib.crc32(last.head):
        raise JournalDamaged(path, offset, "chain: a frame was changed, removed or moved")
    if length > _PAYLOAD_BYTES_MAX:
        raise JournalDamaged(path, offset, f"length {length}")
    end = body_offset + CHAIN_BYTES + length
    body = file.read_at(body_offset, end - body_offset)
    payload = memoryview(body)[CHAIN_BYTES:]
    chain = hashlib.sha256(last.head)
    chain.update(payload)
    head = chain.digest()
    if end > size or len(body) < end - body_offset or head != body[:CHAIN_BYTES]:
        _refuse_unless_torn(file, path, offset, end, size, "checksum of a frame")
        return None
    try:
        return Frame(offset, end, head, _decoder.decode(payload))
    except msgspec.DecodeError as error:
        raise JournalDamaged(path, offset, f"payload ({error})") from error


def _refuse_unless_torn(file: File, path: Path, offset: int, end: int, size: int, what: str) -> None:
    """Return if nothing but zeros follows ``end``, where the bad frame at ``offset`` would end."""
    position = end
    while position < size:
        part = file.read_at(position, min(_SCAN_BYTES, size - position))
        if part.strip(b"\0"):
            raise JournalDamaged(path, offset, what)
        position += len(part)
