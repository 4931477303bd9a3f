"""NaCl in a simulation: the same bytes for the same seed, and nothing computed twice in one process. Entries
of logs, too, are decoded once only, however often they are read.

All that is sent is really signed and really sealed. The keys that libsodium would draw for each sealed box
come from the seed. What was signed or sealed here and comes back unchanged is known to hold: it is looked up;
anything else (altered, by another key) goes to libsodium.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from unittest.mock import patch

from nacl import bindings

from coordinator import entries, recovery, replay

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

    def sign(self, message: bytes, secret: bytes) -> bytes:
        signed = self._sign(message, secret)
        self._signed.add((secret[_PUBLIC_AT:], signed))
        return signed

    def sign_open(self, signed: bytes, public: bytes) -> bytes:
        if (public, signed) in self._signed:
            return signed[bindings.crypto_sign_BYTES :]
        return self._sign_open(signed, public)

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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While this holds, NaCl is as the module says. Not to be entered twice at a time."""
    known = _Known(seed)
    ours: dict[str, Any] = {
        "crypto_sign": known.sign,
        "crypto_sign_open": known.sign_open,
        "crypto_box_seal": known.seal,
        "crypto_box_seal_open": known.seal_open,
        "crypto_sign_seed_keypair": lru_cache(maxsize=256)(bindings.crypto_sign_seed_keypair),
        "crypto_scalarmult_base": lru_cache(maxsize=256)(bindings.crypto_scalarmult_base),
    }
    with ExitStack() as stack:
        for name, function in ours.items():
            stack.enter_context(patch.object(bindings, name, function))
        decoded = lru_cache(maxsize=None)(entries.decode_entry)
        for module in (entries, recovery, replay):
            stack.enter_context(patch.object(module, "decode_entry", decoded))
        yield
