"""An update on its way from an agent under test."""

from __future__ import annotations

from hashlib import sha256

from coordinator.onto.questions import Question
from schemas import chunks
from schemas import events as e
from schemas.encodings import FLOAT32, encoded_bytes, told_encoding
from schemas.envelope import Envelope, Opened, chunk_digests, open_envelope
from schemas.errors import Malformed
from schemas.limits import GRANT_CHUNKS_MAX
from schemas.sealing import aead_open


class Arriving:
    """An update on its way from the agent. Its chunks stay in memory."""

    def __init__(self, question: Question, envelope: Envelope, federation: bytes) -> None:
        """Raises `schemas.errors.WireError` for one that is not an update of the job's layout."""
        self.envelope = envelope
        self._opened: Opened = open_envelope(envelope, question.key, federation)
        update = e.decode_from_device(self._opened.inner)
        if not isinstance(update, e.Update):
            raise Malformed("what is sealed to the request's key is no update")
        encoding = told_encoding(update.encoding)
        if encoding not in (FLOAT32, question.request.encoding):
            raise Malformed(f"an update in {encoding.name}, which was not asked for")
        content_bytes = encoded_bytes(encoding, question.layout.trained_count)
        got = envelope.clear.content_bytes or len(update.inline)
        if got != content_bytes:
            raise Malformed(f"an update of {got} bytes where {content_bytes} belong")
        self.update = update
        self._digests = chunk_digests(envelope)
        self.have: dict[int, bytes] = {}
        self._granted: set[int] = set()

    def take(self, chunk: chunks.Chunk) -> bool:
        """Keep a chunk of this update; whether more may be granted now."""
        index, sealed = chunk.index, bytes(chunk.sealed)
        if index >= len(self._digests) or sha256(sealed).digest() != self._digests[index]:
            return False
        self.have[index] = sealed
        self._granted.discard(index)
        return not self._granted

    def grant(self) -> list[int]:
        """The next chunks that may be sent."""
        missing = [index for index in range(len(self._digests)) if index not in self.have]
        self._granted = set(missing[:GRANT_CHUNKS_MAX])
        return sorted(self._granted)

    @property
    def whole(self) -> bool:
        return len(self.have) == len(self._digests)

    def content(self) -> bytes:
        """What the device changed. Raises `schemas.errors.Forged`."""
        key, context, count = self._opened.key, self._opened.context, len(self._digests)
        plain = (aead_open(key, index, count, self.have[index], context) for index in range(count))
        return b"".join(plain) if count else self.update.inline
