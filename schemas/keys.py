"""Keys and what is signed with them: key sets, certificates, tokens. All of NaCl's signatures are here.

Ed25519 (RFC 8032) signs, X25519 (RFC 7748) receives; one is never converted into the other. Every kind of
signed object has its own prefix, so that a signature on one can never pass for another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError

from schemas.codec import pack, unpack_canonical
from schemas.errors import Forged, KeyRefused, Malformed
from schemas.ids import DeviceId, FederationId, key_id

KEY_BYTES = 32
SIGNATURE_BYTES = 64
S = TypeVar("S", bound=msgspec.Struct)


class Kind(Enum):
    """What a signature is about; the value goes in front of what is signed."""

    ENVELOPE = b"fedbus/1/envelope\0"
    KEY_SET = b"fedbus/1/key-set\0"
    CERTIFICATE = b"fedbus/1/certificate\0"
    JOIN_TOKEN = b"fedbus/1/join-by-token\0"
    JOIN_DEVICE = b"fedbus/1/join-by-device\0"
    WELCOME = b"fedbus/1/welcome\0"
    MANIFEST = b"fedbus/1/manifest\0"


def checked_key(key: bytes, what: str = "key") -> bytes:
    """``key`` if it has 32 bytes; `KeyRefused` otherwise."""
    if len(key) != KEY_BYTES:
        raise KeyRefused(f"{what} of {len(key)} bytes; a key has {KEY_BYTES}")
    return key


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key pair, from its 32-byte seed."""

    seed: bytes = field(repr=False)
    public: bytes
    _secret: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Raises `KeyRefused` unless ``seed`` has 32 bytes."""
        public, secret = bindings.crypto_sign_seed_keypair(checked_key(seed, "signing seed"))
        return cls(seed, public, secret)

    @property
    def id(self) -> bytes:
        return key_id(self.public)

    def sign(self, kind: Kind, message: bytes) -> bytes:
        """The 64-byte signature over the kind's prefix and ``message``."""
        signed = bindings.crypto_sign(kind.value + message, self._secret)
        return signed[:SIGNATURE_BYTES]


@dataclass(frozen=True, slots=True)
class BoxKey:
    """An X25519 key pair that messages are sealed to, from its 32-byte secret."""

    secret: bytes = field(repr=False)
    public: bytes

    @classmethod
    def from_secret(cls, secret: bytes) -> BoxKey:
        return cls(secret, bindings.crypto_scalarmult_base(checked_key(secret, "box secret")))

    @property
    def id(self) -> bytes:
        return key_id(self.public)


def verify(kind: Kind, public: bytes, message: bytes, signature: bytes) -> None:
    """Raises `Forged` unless ``signature`` by ``public`` over this kind and message holds."""
    checked_key(public, "signer's key")
    if len(signature) != SIGNATURE_BYTES:
        raise Forged(f"a signature of {len(signature)} bytes; it has {SIGNATURE_BYTES}")
    try:
        bindings.crypto_sign_open(signature + kind.value + message, public)
    except CryptoError as error:
        raise Forged(f"the signature of this {kind.name.lower().replace('_', ' ')} does not hold") from error


@lru_cache(maxsize=4_096)
def checked_box_public(public: bytes) -> bytes:
    """``public`` if messages can be sealed to it: 32 bytes, not of low order. `KeyRefused` otherwise."""
    checked_key(public, "X25519 key")
    probe = blake2b(public, digest_size=KEY_BYTES, person=b"fb1.order-probe").digest()
    try:
        shared = bindings.crypto_scalarmult(probe, public)
    except (CryptoError, RuntimeError) as error:
        raise KeyRefused("X25519 key of low order") from error
    if shared == bytes(KEY_BYTES):
        raise KeyRefused("X25519 key of low order")
    return public


def sign_struct(kind: Kind, key: SigningKey, value: msgspec.Struct) -> bytes:
    """``value`` packed, with the signature in front: sig64 ‖ msgpack."""
    packed = pack(value)
    return key.sign(kind, packed) + packed


def open_struct(kind: Kind, public: bytes, blob: bytes, type_: type[S]) -> S:
    """The struct in ``blob`` after its signature was checked. Raises `Forged` or `Malformed`."""
    if len(blob) < SIGNATURE_BYTES:
        raise Malformed(f"a signed {type_.__name__} of {len(blob)} bytes is too short")
    signature, packed = blob[:SIGNATURE_BYTES], blob[SIGNATURE_BYTES:]
    verify(kind, public, packed, signature)
    return unpack_canonical(packed, type_)


class KeySet(msgspec.Struct, frozen=True, kw_only=True, tag="key-set"):
    """The coordinator's online keys, signed by the root. Devices take only a growing ``number``.

    ``previous`` is the SHA-256 of the signed key set before (empty in the first); ``next_root`` the
    BLAKE2b-256 of the root key that may sign after this one, kept offline.
    """

    number: int
    federation: bytes
    previous: bytes
    next_root: bytes
    signing: bytes
    box: bytes
    enrolment: bytes


class Certificate(msgspec.Struct, frozen=True, kw_only=True, tag="certificate"):
    """That a device belongs to this federation and to an entity, signed by the online key."""

    federation: bytes
    device: str
    entity: str
    signing: bytes
    box: bytes
    key_set: int


@lru_cache(maxsize=64)
def open_key_set(blob: bytes, root: bytes, federation: FederationId, newest: int = 0) -> KeySet:
    """The key set in ``blob`` if the pinned ``root`` signed it for this federation and it is not older.

    Raises `Forged`, `Malformed`, `KeyRefused`.
    """
    keys = open_struct(Kind.KEY_SET, root, blob, KeySet)
    if keys.federation != federation:
        raise Forged("this key set belongs to another federation")
    if keys.number < newest:
        raise Forged(f"key set {keys.number} is older than {newest}, which is known already")
    checked_key(keys.signing, "signing key")
    checked_box_public(keys.box)
    checked_box_public(keys.enrolment)
    return keys


def open_certificate(blob: bytes, keys: KeySet, device: DeviceId) -> Certificate:
    """The certificate in ``blob`` if the online key signed it for ``device``. Raises `Forged`."""
    certificate = open_struct(Kind.CERTIFICATE, keys.signing, blob, Certificate)
    if certificate.federation != keys.federation or certificate.device != device:
        raise Forged(f"this certificate is not for device {device} of this federation")
    return certificate
