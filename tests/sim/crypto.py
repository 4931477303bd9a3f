"""NaCl in a simulation: the same bytes for the same seed, and nothing computed twice in one process. Journals
and signed documents, too, are checked and decoded once for the same bytes, and paths are joined once.

All that is sent is really signed and really sealed. The keys that libsodium would draw for each sealed box
come from the seed. What was signed, sealed or encrypted here and comes back unchanged is known to hold: it is
looked up; anything else (altered, by another key) goes to libsodium.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, Final
from unittest.mock import patch

from nacl import bindings

from broker import journal_segments
from broker.journal_file import Frame, read_frames
from broker.ports import File
from coordinator import entries, recording, recovery, store, verify
from edge_agent import listen
from schemas import envelope, keys, models

READ_ONCE: Final[dict[str, tuple[ModuleType, ...]]] = {
    "decode_entry": (entries, recording, recovery, verify),
    "unpack_canonical": (keys,),
    "open_layout": (models, listen, store),
    "_parse_header": (envelope,),
}
"""What is a matter of the bytes alone, and makes frozen values of them."""
PARENT: Final[Callable[[PurePath], PurePath]] = PurePath.parent.fget  # type: ignore[attr-defined]  # a property
_PUBLIC_AT = 32  # an Ed25519 secret key is its seed and its public key
_NONCE_BYTES = 24
_KEYS = 2  # for sealed boxes, where libsodium makes one for each: what they share with a reader is kept


class _Known:
    """What this process signed and sealed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"{seed}:sealed boxes")
        self._sign, self._sign_open = bindings.crypto_sign, bindings.crypto_sign_open
        self._seal_open = bindings.crypto_box_seal_open
        secrets = [self._rng.randbytes(32) for _ in range(_KEYS)]
        self._once = [(bindings.crypto_scalarmult_base(secret), secret) for secret in secrets]
        self._shared: dict[tuple[bytes, bytes], bytes] = {}
        self._signed: set[tuple[bytes, bytes]] = set()
        self._sealed: dict[bytes, tuple[bytes, bytes]] = {}
        self._encrypt = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt
        self._decrypt = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt
        self._encrypted: dict[tuple[bytes, bytes, bytes, bytes], bytes] = {}

    def sign(self, message: bytes, secret: bytes) -> bytes:
        signed = self._sign(message, secret)
        self._signed.add((secret[_PUBLIC_AT:], signed))
        return signed

    def sign_open(self, signed: bytes, public: bytes) -> bytes:
        if (public, signed) in self._signed:
            return signed[bindings.crypto_sign_BYTES :]
        message = self._sign_open(signed, public)
        self._signed.add((public, signed))
        return message

    def seal(self, message: bytes, public: bytes) -> bytes:
        """As crypto_box_seal: a one-time public key, then the box under a nonce of both public keys."""
        own, secret = self._rng.choice(self._once)
        if (own, public) not in self._shared:
            self._shared[own, public] = bindings.crypto_box_beforenm(public, secret)
        nonce = blake2b(own + public, digest_size=_NONCE_BYTES).digest()
        sealed = own + bindings.crypto_box_afternm(message, nonce, self._shared[own, public])
        self._sealed[sealed] = public, message
        return sealed

    def seal_open(self, sealed: bytes, public: bytes, secret: bytes) -> bytes:
        of, message = self._sealed.get(sealed, (b"", b""))
        return message if of == public else self._seal_open(sealed, public, secret)

    def encrypt(self, message: bytes, context: bytes, nonce: bytes, key: bytes) -> bytes:
        encrypted = self._encrypt(message, context, nonce, key)
        self._encrypted[encrypted, context, nonce, key] = message
        return encrypted

    def decrypt(self, encrypted: bytes, context: bytes, nonce: bytes, key: bytes) -> bytes:
        known = self._encrypted.get((encrypted, context, nonce, key))
        return self._decrypt(encrypted, context, nonce, key) if known is None else known


class _Frames:
    """Frames of journals, by all the bytes that they are read from; damaged ones are not kept."""

    def __init__(self, read: Callable[[File, Path, Frame, int], Iterator[Frame]]) -> None:
        self._read = read
        self._known: dict[tuple[bytes, int, bytes], list[Frame]] = {}

    def __call__(self, file: File, path: Path, start: Frame, size: int) -> Iterator[Frame]:
        key = start.head, start.end, file.read_at(start.end, size - start.end)
        if key not in self._known:
            self._known[key] = list(self._read(file, path, start, size))
        return iter(self._known[key])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While this holds, NaCl is as the module says. Not to be entered twice at a time."""
    known = _Known(seed)
    ours: dict[str, Any] = {
        "crypto_sign": known.sign,
        "crypto_sign_open": known.sign_open,
        "crypto_box_seal": known.seal,
        "crypto_box_seal_open": known.seal_open,
        "crypto_aead_xchacha20poly1305_ietf_encrypt": known.encrypt,
        "crypto_aead_xchacha20poly1305_ietf_decrypt": known.decrypt,
        "crypto_sign_seed_keypair": lru_cache(maxsize=256)(bindings.crypto_sign_seed_keypair),
        "crypto_scalarmult_base": lru_cache(maxsize=256)(bindings.crypto_scalarmult_base),
    }
    with ExitStack() as stack:
        for name, function in ours.items():
            stack.enter_context(patch.object(bindings, name, function))
        for name, modules in READ_ONCE.items():
            once = lru_cache(maxsize=None)(getattr(modules[0], name))
            for module in modules:
                stack.enter_context(patch.object(module, name, once))
        frames = _Frames(read_frames)
        stack.enter_context(patch.object(journal_segments, "read_frames", frames))
        # Paths are values: with the same text for the same joining each is printed and hashed once.
        for name in ("__truediv__", "with_name"):
            joined = lru_cache(maxsize=None, typed=True)(getattr(PurePath, name))
            stack.enter_context(patch.object(PurePath, name, joined))
        parent = property(lru_cache(maxsize=None, typed=True)(PARENT))
        stack.enter_context(patch.object(PurePath, "parent", parent))
        yield
