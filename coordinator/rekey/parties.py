"""Throw-away keys in place of those that a recording names."""

from __future__ import annotations

from broker.ports import Entropy
from coordinator.keystore import Identity
from schemas.keys import BoxKey, SigningKey


class Parties:
    """For every key of the recording, by its id, a fresh one; the coordinator's are those of ``ours``."""

    def __init__(self, entropy: Entropy, source: Identity, ours: Identity) -> None:
        self._random_bytes = entropy.random_bytes
        self._signing = {source.online.id: ours.online}
        self._boxes = {source.box.id: ours.box, source.enrolment.id: ours.enrolment}
        self._values: dict[bytes, bytes] = {}

    def signing(self, key_id: bytes) -> SigningKey:
        """In place of the Ed25519 key with this id."""
        if key_id not in self._signing:
            self._signing[key_id] = SigningKey.from_seed(self._random_bytes(32))
        return self._signing[key_id]

    def box(self, key_id: bytes) -> BoxKey:
        """In place of the X25519 key with this id."""
        if key_id not in self._boxes:
            self._boxes[key_id] = BoxKey.from_secret(self._random_bytes(32))
        return self._boxes[key_id]

    def value(self, drawn: bytes) -> bytes:
        """In place of bytes that somebody drew: a token's id, a challenge, …"""
        if drawn not in self._values:
            self._values[drawn] = self._random_bytes(len(drawn))
        return self._values[drawn]

    def fresh(self) -> bytes:
        """A new content key."""
        return self._random_bytes(32)
