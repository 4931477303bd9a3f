"""One message on the wire: seal, then sign; verify, then open. See docs/protocol.md, "Envelope".

``"FBE1" ‖ u16 hlen ‖ header ‖ sig64 ‖ body``. The header says who, to whom and how much; the body holds the
sealed inner document and the digests of the content's chunks. Whoever encrypts needs public keys only;
whoever signs needs no content: an agent's worker does the first, its resident the second.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from typing import Final

import msgspec

from schemas.codec import canonical, pack, unpack_plain
from schemas.errors import Forged, Malformed, UnknownVersion, WrongRecipient
from schemas.ids import DIGEST_BYTES, FEDERATION_BYTES, KEY_ID_BYTES, key_id, transfer_id
from schemas.keys import SIGNATURE_BYTES, BoxKey, Kind, SigningKey, verify
from schemas.limits import (
    BODY_BYTES_MAX,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    CHUNK_OVERHEAD_BYTES,
    CHUNKS_MAX,
    CONTENT_BYTES_MAX,
    HEADER_BYTES_MAX,
    INCARNATION_MAX,
    INNER_PAD_BYTES,
    PROTOCOL_VERSION,
    SEQ_MAX,
    SUITE_XCHACHA20,
)
from schemas.sealing import INNER_INDEX, aead_open, aead_seal, commitment, derive, open_key, seal_key

MAGIC: Final = b"FBE1"
PREFIX: Final = struct.Struct(">4sH")
LENGTH: Final = struct.Struct(">I")


class Clear(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the broker may see. Bound into every key and every chunk of the message as ``ctx``."""

    version: int
    suite: int
    federation: bytes
    sender: bytes
    recipient: bytes
    content_bytes: int = 0
    chunk_bytes: int = 0
    chunks: int = 0

    def context(self) -> bytes:
        return blake2b(pack(self), digest_size=32, person=b"fb1.ctx").digest()

    def chunk_size(self, index: int) -> int:
        """Plain bytes of chunk ``index``: all but the last are full."""
        return min(self.chunk_bytes, self.content_bytes - index * self.chunk_bytes)


class Seal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The content key for the recipient, the commitment to it, and SHA-256 of the body."""

    key: bytes
    commitment: bytes
    body: bytes


class Order(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """Where the message stands among its sender's. Signed, but not part of ``ctx``."""

    incarnation: int
    seq: int


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is signed."""

    clear: Clear
    seal: Seal
    order: Order


class Sealed(msgspec.Struct, frozen=True):
    """A message that is encrypted but not yet signed; the outbox keeps it so."""

    clear: Clear
    seal: Seal
    body: bytes


class Envelope(msgspec.Struct, frozen=True):
    """A message as received: sizes are right, nothing else is proven until `check_signature`."""

    header: Header
    header_bytes: bytes
    signature: bytes
    body: bytes

    @property
    def clear(self) -> Clear:
        return self.header.clear

    @property
    def order(self) -> Order:
        return self.header.order

    @property
    def digest(self) -> bytes:
        """SHA-256 of the body: the message's identity, whatever number it is signed under."""
        return self.header.seal.body

    @property
    def transfer(self) -> bytes:
        return transfer_id(self.header.seal.body)

    def to_bytes(self) -> bytes:
        return PREFIX.pack(MAGIC, len(self.header_bytes)) + self.header_bytes + self.signature + self.body

    def check_signature(self, sender: bytes) -> None:
        """Raises `Forged` unless the Ed25519 key ``sender`` signed this header and the body is its."""
        if key_id(sender) != self.clear.sender:
            raise Forged("the header names another sender")
        verify(Kind.ENVELOPE, sender, self.header_bytes, self.signature)
        if sha256(self.body).digest() != self.header.seal.body:
            raise Forged("the body is not the one that was signed")


@dataclass(frozen=True, slots=True)
class Opened:
    """A message that was verified and opened."""

    inner: bytes = field(repr=False)
    key: bytes = field(repr=False)  # encryption key, for the chunks
    context: bytes
    chunk_digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """How a content too large for the body is cut, and the digest of each sealed chunk."""

    content_bytes: int
    chunk_bytes: int
    digests: tuple[bytes, ...]


def chunk_count(content_bytes: int, chunk_bytes: int) -> int:
    """How many chunks a content has: the quotient, rounded up."""
    return -(-content_bytes // chunk_bytes)


def fitting_chunk_bytes(content_bytes: int, chunk_bytes: int) -> int:
    """``chunk_bytes``, doubled until the chunks are few enough."""
    while chunk_count(content_bytes, chunk_bytes) > CHUNKS_MAX:
        chunk_bytes *= 2
    return chunk_bytes


def new_clear(
    federation: bytes, sender: bytes, recipient: bytes, content_bytes: int = 0, chunk_bytes: int = 0
) -> Clear:
    """The clear part of a message; ``sender`` and ``recipient`` are public keys."""
    count = chunk_count(content_bytes, chunk_bytes) if content_bytes else 0
    return Clear(
        PROTOCOL_VERSION,
        SUITE_XCHACHA20,
        federation,
        key_id(sender),
        key_id(recipient),
        content_bytes,
        chunk_bytes if count else 0,
        count,
    )


def content_key(key: bytes, clear: Clear) -> tuple[bytes, bytes]:
    """(encryption key, ctx) of a message with the random key ``key``."""
    context = clear.context()
    return derive(key, b"fb1.enc", context), context


def seal(clear: Clear, key: bytes, recipient: bytes, inner: bytes, digests: tuple[bytes, ...] = ()) -> Sealed:
    """Encrypt ``inner`` to the X25519 key ``recipient`` under the fresh random 32-byte ``key``.

    ``digests`` are the SHA-256 of the sealed chunks, in order, if there is a content beside.
    """
    if len(digests) != clear.chunks:
        raise ValueError(f"{len(digests)} chunk digests for {clear.chunks} chunks")
    encryption, context = content_key(key, clear)
    padded = LENGTH.pack(len(inner)) + inner
    padded += bytes(-len(padded) % INNER_PAD_BYTES)
    body = aead_seal(encryption, INNER_INDEX, clear.chunks, padded, context) + b"".join(digests)
    if len(body) > BODY_BYTES_MAX:
        raise ValueError(f"a body of {len(body)} bytes; at most {BODY_BYTES_MAX} may travel")
    seal_ = Seal(seal_key(key, recipient), derive(key, b"fb1.commit", context), sha256(body).digest())
    return Sealed(clear, seal_, body)


def sign(sealed: Sealed, sender: SigningKey, order: Order) -> Envelope:
    """Sign an encrypted message under a sequence number; may be repeated under another."""
    header = Header(sealed.clear, sealed.seal, order)
    header_bytes = pack(header)
    return Envelope(header, header_bytes, sender.sign(Kind.ENVELOPE, header_bytes), sealed.body)


def parse(data: bytes) -> Envelope:
    """The parts of a message, checked for size and form only. Raises `Malformed` or `UnknownVersion`."""
    if len(data) < PREFIX.size:
        raise Malformed(f"{len(data)} bytes are no message")
    magic, header_bytes_count = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise Malformed("not an envelope: wrong magic")
    body_at = PREFIX.size + header_bytes_count + SIGNATURE_BYTES
    if header_bytes_count > HEADER_BYTES_MAX or not body_at <= len(data) <= body_at + BODY_BYTES_MAX:
        raise Malformed("truncated or oversized envelope")
    header_bytes = data[PREFIX.size : PREFIX.size + header_bytes_count]
    header = _parse_header(header_bytes)
    if len(data) - body_at < header.clear.chunks * DIGEST_BYTES + CHUNK_OVERHEAD_BYTES:
        raise Malformed("the body is too short for its chunk digests")
    return Envelope(header, header_bytes, data[body_at - SIGNATURE_BYTES : body_at], data[body_at:])


def _parse_header(header_bytes: bytes) -> Header:
    # The version is looked at before the form: a later version may have another one.
    plain = unpack_plain(header_bytes, bytes_max=HEADER_BYTES_MAX)
    if isinstance(plain, list) and plain and isinstance(plain[0], list) and plain[0]:
        version = plain[0][0]
        if isinstance(version, int) and version != PROTOCOL_VERSION:
            raise UnknownVersion(version, PROTOCOL_VERSION)
    header = canonical(plain, header_bytes, Header)
    clear = header.clear
    if clear.suite != SUITE_XCHACHA20:
        raise Malformed(f"unknown cipher suite {clear.suite}")
    lengths = (len(clear.federation), len(clear.sender), len(clear.recipient), len(header.seal.body))
    if lengths != (FEDERATION_BYTES, KEY_ID_BYTES, KEY_ID_BYTES, DIGEST_BYTES):
        raise Malformed("an identifier of the wrong length")
    if not 0 <= header.order.incarnation <= INCARNATION_MAX or not 0 <= header.order.seq <= SEQ_MAX:
        raise Malformed("sequence number out of range")
    _check_division(clear)
    return header


def _check_division(clear: Clear) -> None:
    if clear.chunks == clear.content_bytes == clear.chunk_bytes == 0:
        return
    if not 0 < clear.content_bytes <= CONTENT_BYTES_MAX or not 0 < clear.chunks <= CHUNKS_MAX:
        raise Malformed("content size out of range")
    if not CHUNK_BYTES_MIN <= clear.chunk_bytes <= CHUNK_BYTES_MAX:
        raise Malformed("chunk size out of range")
    if clear.chunks != chunk_count(clear.content_bytes, clear.chunk_bytes):
        raise Malformed("the number of chunks does not fit the content's size")


def open_envelope(envelope: Envelope, reader: BoxKey, federation: bytes) -> Opened:
    """The inner document, once the signature was checked.

    Raises `WrongRecipient`, `Forged`, `KeyRefused`.
    """
    clear = envelope.clear
    if clear.federation != federation:
        raise WrongRecipient("the message belongs to another federation")
    if clear.recipient != reader.id:
        raise WrongRecipient("the message is sealed to another reader")
    key = open_key(envelope.header.seal.key, reader)
    encryption, context = content_key(key, clear)
    commitment(key, b"fb1.commit", context, envelope.header.seal.commitment)
    sealed_bytes = len(envelope.body) - clear.chunks * DIGEST_BYTES
    padded = aead_open(encryption, INNER_INDEX, clear.chunks, envelope.body[:sealed_bytes], context)
    size = LENGTH.unpack_from(padded)[0] if len(padded) >= LENGTH.size else -1
    if len(padded) != -(-(LENGTH.size + size) // INNER_PAD_BYTES) * INNER_PAD_BYTES:
        raise Forged("the inner document has another size than it says")
    return Opened(padded[LENGTH.size : LENGTH.size + size], encryption, context, chunk_digests(envelope))


def chunk_digests(envelope: Envelope) -> tuple[bytes, ...]:
    """SHA-256 of each sealed chunk, in order. They are signed, but not secret."""
    start = len(envelope.body) - envelope.clear.chunks * DIGEST_BYTES
    return tuple(
        envelope.body[at : at + DIGEST_BYTES] for at in range(start, len(envelope.body), DIGEST_BYTES)
    )
