"""Typed, sealed, signed, numbered messages over a bus: what both sides send small events with."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from broker.bus import Bus
from broker.ports import Entropy, Files, write_atomic
from schemas.envelope import Envelope, Opened, Order, Sealed, new_clear, open_envelope, seal, sign
from schemas.events import Event, encode_event
from schemas.ids import FederationId
from schemas.keys import BoxKey, SigningKey
from schemas.limits import SEQ_BLOCK
from schemas.window import Window

RESERVED = struct.Struct("<IQ")


class Sequencer:
    """Numbers this sender's messages. No number is given twice, whatever is killed: blocks of
    `SEQ_BLOCK` numbers are reserved durably before the first of them is used."""

    def __init__(self, files: Files, path: Path) -> None:
        self._files = files
        self._path = path
        self.incarnation, self._next = 0, 0
        if files.exists(path):
            self.incarnation, self._next = RESERVED.unpack(files.read(path))
        self._reserved = self._next

    def next(self) -> Order:
        """The next number; durable first, when a block of them is used up."""
        if self._next >= self._reserved:
            reserved = self._next + SEQ_BLOCK
            write_atomic(self._files, self._path, RESERVED.pack(self.incarnation, reserved))
            self._reserved = reserved
        order = Order(self.incarnation, self._next)
        self._next += 1
        return order

    def skip_beyond(self, high: int) -> None:
        """Never use a number up to ``high`` again (the reader said that it has seen it)."""
        self._next = max(self._next, high + 1)


@dataclass(slots=True)
class Mailbox:
    """One sender's way out: seals to a reader, signs, publishes."""

    bus: Bus
    federation: FederationId
    key: SigningKey
    sequencer: Sequencer
    entropy: Entropy

    def seal(self, recipient: bytes, event: Event) -> Sealed:
        """``event`` encrypted to the X25519 key ``recipient``."""
        clear = new_clear(self.federation, self.key.public, recipient)
        return seal(clear, self.entropy.random_bytes(32), recipient, encode_event(event))

    def sign(self, sealed: Sealed) -> Envelope:
        """Under the next number; the same ciphertext may be signed again."""
        return sign(sealed, self.key, self.sequencer.next())

    async def send(self, topic: str, recipient: bytes, event: Event) -> Envelope:
        """Seal, sign and publish. Raises `broker.bus.BusError`; at-most-once is the caller's to mend."""
        envelope = self.sign(self.seal(recipient, event))
        await self.bus.publish(topic, envelope.to_bytes())
        return envelope


def read(envelope: Envelope, sender: bytes, window: Window, reader: BoxKey, federation: bytes) -> Opened:
    """Verify, check for replay, open: in this order. Raises `schemas.errors.WireError`."""
    envelope.check_signature(sender)
    window.check(envelope.order)
    return open_envelope(envelope, reader, federation)
