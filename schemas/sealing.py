"""Authenticated encryption: sealed content keys, the AEAD over bodies and chunks.

Two errors for all: bytes that do not open are `Forged`, whatever the cause; a key that cannot be used
(length, low order, another than committed to) is `KeyRefused`.

XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) does not commit to its key: the header carries a BLAKE2b
commitment beside it. Nonces are counters, because every message has a fresh key.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from nacl import bindings
from nacl._sodium import ffi, lib  # type: ignore[import-not-found]  # the public binding copies every chunk twice; see chunk_open_into
from nacl.exceptions import CryptoError

from schemas.errors import Forged, KeyRefused
from schemas.keys import BoxKey, checked_box_public, checked_key
from schemas.limits import CHUNK_OVERHEAD_BYTES

SEALED_KEY_BYTES: Final = 32 + 48
INNER_INDEX: Final = 2**32 - 1
NOT_OURS: Final = "it does not open with this key: altered, or sealed for another reader or context"


def seal_key(key: bytes, recipient: bytes) -> bytes:
    """``crypto_box_seal`` of a content key to an X25519 public key."""
    checked_key(key, "content key")
    return bindings.crypto_box_seal(key, checked_box_public(recipient))


def open_key(sealed: bytes, reader: BoxKey) -> bytes:
    """The content key in ``sealed``. Raises `Forged`."""
    if len(sealed) != SEALED_KEY_BYTES:
        raise Forged(f"a sealed key of {len(sealed)} bytes; it has {SEALED_KEY_BYTES}")
    try:
        return bindings.crypto_box_seal_open(sealed, reader.public, reader.secret)
    except (CryptoError, ValueError, TypeError) as error:
        raise Forged(NOT_OURS) from error


def seal_bytes(plain: bytes, recipient: bytes) -> bytes:
    """A short document sealed to an X25519 key, without a sender (enrolment only)."""
    return bindings.crypto_box_seal(plain, checked_box_public(recipient))


def open_bytes(sealed: bytes, reader: BoxKey) -> bytes:
    """What `seal_bytes` sealed. Raises `Forged`."""
    if len(sealed) < 48:
        raise Forged("too short to be sealed")
    try:
        return bindings.crypto_box_seal_open(sealed, reader.public, reader.secret)
    except (CryptoError, ValueError, TypeError) as error:
        raise Forged(NOT_OURS) from error


def derive(key: bytes, person: bytes, context: bytes) -> bytes:
    """BLAKE2b-256 of ``context`` under ``key``, for one purpose ("person", at most 16 bytes)."""
    return blake2b(context, key=checked_key(key), digest_size=32, person=person).digest()


def nonce(index: int, count: int) -> bytes:
    """LE64(index) ‖ LE64(count) ‖ 0⁸: chunks can be neither moved nor taken from another division."""
    return struct.pack("<QQQ", index, count, 0)


def aead_seal(key: bytes, index: int, count: int, plain: bytes | memoryview, context: bytes) -> bytes:
    """Chunk ``index`` of ``count`` (or the inner body: `INNER_INDEX`), 16 bytes longer than ``plain``."""
    return bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        bytes(plain), context, nonce(index, count), checked_key(key)
    )


def aead_open(key: bytes, index: int, count: int, sealed: bytes, context: bytes) -> bytes:
    """What `aead_seal` sealed. Raises `Forged`."""
    checked_key(key)
    if len(sealed) < CHUNK_OVERHEAD_BYTES:
        raise Forged("too short to be sealed")
    try:
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, context, nonce(index, count), key)
    except CryptoError as error:
        raise Forged(NOT_OURS) from error


def chunk_open_into(
    key: bytes, index: int, count: int, sealed: memoryview, context: bytes, out: memoryview
) -> None:
    """Open a chunk straight into ``out`` (exactly 16 bytes shorter than ``sealed``). Raises `Forged`.

    A model of 40 MB costs two copies less than through the bytes objects of PyNaCl's public binding.
    """
    checked_key(key)
    if len(sealed) != len(out) + CHUNK_OVERHEAD_BYTES:
        raise Forged(f"a chunk of {len(sealed)} bytes where {len(out) + CHUNK_OVERHEAD_BYTES} belong")
    failed = lib.crypto_aead_xchacha20poly1305_ietf_decrypt(
        ffi.from_buffer("unsigned char[]", out, require_writable=True),
        ffi.NULL,
        ffi.NULL,
        ffi.from_buffer("unsigned char[]", sealed),
        len(sealed),
        context,
        len(context),
        nonce(index, count),
        key,
    )
    if failed:
        raise Forged(NOT_OURS)


def commitment(key: bytes, person: bytes, context: bytes, expected: bytes) -> None:
    """Raises `KeyRefused` unless ``key`` is the one that was committed to."""
    if not compare_digest(derive(key, person, context), expected):
        raise KeyRefused("the key is not the one that the sender committed to")
