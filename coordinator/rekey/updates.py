"""Stored updates, opened and sealed again: under other keys, whole or without their content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final

from msgspec.structs import replace

from broker.bodies import Bodies
from broker.ports import File
from coordinator.rekey.translate import Translator
from coordinator.stored import read_envelope, stored, stored_name
from schemas.encodings import encoded_bytes, told_encoding
from schemas.envelope import (
    Clear,
    Envelope,
    Opened,
    Sealed,
    content_key,
    new_clear,
    open_envelope,
    seal,
    sign,
)
from schemas.errors import WireError
from schemas.events import Update, decode_from_device, encode_event
from schemas.keys import BoxKey
from schemas.limits import CHUNK_OVERHEAD_BYTES
from schemas.sealing import aead_open, aead_seal

TRUNCATED_BYTES: Final = 1024


class Content(StrEnum):
    """What stays of the updates' content: all, the first `TRUNCATED_BYTES`, or nothing."""

    KEEP = "keep"
    TRUNCATE = "truncate"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Found:
    """A stored update, opened."""

    file: File
    chunks_at: int
    clear: Clear
    opened: Opened
    update: Update

    def chunk(self, index: int) -> bytes:
        """Plain chunk ``index``. Raises `schemas.errors.Forged`."""
        at = self.chunks_at + index * (self.clear.chunk_bytes + CHUNK_OVERHEAD_BYTES)
        sealed = self.file.read_at(at, self.clear.chunk_size(index) + CHUNK_OVERHEAD_BYTES)
        return aead_open(self.opened.key, index, self.clear.chunks, sealed, self.opened.context)

    def chunks(self) -> Iterator[bytes]:
        """The plain chunks. Raises `schemas.errors.Forged`."""
        return map(self.chunk, range(self.clear.chunks))

    @property
    def whole(self) -> bool:
        """Whether its content is all there (`Content`)."""
        size = self.clear.content_bytes or len(self.update.inline)
        count = sum(vector.length for vector in self.update.vectors)
        return size == encoded_bytes(told_encoding(self.update.encoding), count)

    def beginning(self, size: int) -> bytes:
        """The first bytes of the content."""
        if not self.clear.chunks:
            return self.update.inline[:size]
        return next(self.chunks())[:size]  # chunks have more than is asked for here


def open_stored(file: File, envelope: Envelope, at: int, key: BoxKey, federation: bytes) -> Found | None:
    """The update in ``file``, whose chunks begin ``at``; None for what ``key`` does not open, or is none."""
    try:
        opened = open_envelope(envelope, key, federation)
        update = decode_from_device(opened.inner)
        if isinstance(update, Update):
            found = Found(file, at, envelope.clear, opened, update)
            for _ in found.chunks():
                pass  # all of them open
            return found
    except WireError:
        pass
    return None


class Updates:
    """The stored updates of a recording, of the federation ``source``, and those of ``ours``."""

    def __init__(
        self,
        was: Bodies,
        bodies: Bodies,
        translator: Translator,
        federations: tuple[bytes, bytes],
        content: Content,
    ) -> None:
        self._was, self._bodies = was, bodies
        self._translator = translator
        self._source, self._ours = federations
        self._content = content

    def seal(self, recipient: bytes, digest: bytes, key: BoxKey | None) -> Sealed:
        """Store the update ``digest`` to the key id ``recipient`` anew; what is signed of it.

        One that ``key`` does not open becomes an empty one, which is no update either.
        """
        file = self._was.open(stored_name(recipient, digest))
        try:
            envelope, at = read_envelope(file)
            found = open_stored(file, envelope, at, key, self._source) if key else None
            return self._put(envelope, found)
        finally:
            file.close()

    def _put(self, envelope: Envelope, found: Found | None) -> Sealed:
        parties, was = self._translator.parties, envelope.clear
        sender, recipient = parties.signing(was.sender), parties.box(was.recipient)
        key, whole = parties.fresh(), self._content is Content.KEEP
        in_chunks = found if whole and was.chunks else None
        size = (was.content_bytes, was.chunk_bytes) if in_chunks else (0, 0)
        clear = new_clear(self._ours, sender.public, recipient.public, *size)
        digests = tuple(sha256(chunk).digest() for chunk in _chunks(in_chunks, clear, key))
        sealed = seal(clear, key, recipient.public, self._inner(found), digests)
        signed = sign(sealed, sender, envelope.order)
        # Chunks are sealed twice: their digests come first in the file, and memory may not hold all of them.
        parts = _parts(signed, _chunks(in_chunks, clear, key))
        self._bodies.put(stored_name(recipient.id, signed.digest), parts)
        return Sealed(sealed.clear, sealed.seal, b"")  # many are remembered

    def _inner(self, found: Found | None) -> bytes:
        if found is None:
            return b""
        update = self._translator.struct(found.update)
        if self._content is not Content.KEEP:
            size = TRUNCATED_BYTES if self._content is Content.TRUNCATE else 0
            update = replace(update, inline=found.beginning(size))
        return encode_event(update)


def _parts(signed: Envelope, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield stored(signed)
    yield from chunks


def _chunks(found: Found | None, clear: Clear, key: bytes) -> Iterator[bytes]:
    """The chunks of ``found``, sealed for us."""
    encryption, context = content_key(key, clear)
    for index, plain in enumerate(found.chunks() if found else ()):
        yield aead_seal(encryption, index, clear.chunks, plain, context)
