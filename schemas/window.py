"""Replay protection: which sequence numbers of a sender were seen. Pure; about 160 bytes a sender."""

from __future__ import annotations

import msgspec

from schemas.envelope import Order
from schemas.errors import Replayed, TooOld
from schemas.limits import REPLAY_WINDOW

MASK = (1 << REPLAY_WINDOW) - 1


class Window(msgspec.Struct, frozen=True):
    """The newest number seen, and which of the `REPLAY_WINDOW` numbers up to it (bit 0: the newest).

    After RFC 4303, section 3.4.3 (IPsec's anti-replay window), per incarnation of the sender.
    """

    incarnation: int = 0
    high: int = -1
    seen: bytes = b""

    def check(self, order: Order) -> None:
        """Raises `Replayed` or `TooOld` unless a message with this number may be taken now."""
        if order.incarnation < self.incarnation:
            raise Replayed(
                f"from incarnation {order.incarnation} of the sender, which was replaced by "
                f"{self.incarnation}: it runs from an old copy of its state"
            )
        if order.incarnation > self.incarnation or order.seq > self.high:
            return
        if order.seq <= self.high - REPLAY_WINDOW:
            raise TooOld(self.high)
        if self._bits() >> (self.high - order.seq) & 1:
            raise Replayed(f"message {order.seq} was seen before")

    def after(self, order: Order) -> Window:
        """The window once a message was taken. It never moves back: one that was checked earlier and is
        too old by now (a long upload, say) changes nothing."""
        if order.incarnation < self.incarnation:
            return self
        if order.incarnation == self.incarnation and order.seq <= self.high - REPLAY_WINDOW:
            return self
        bits, high = self._bits(), self.high
        if order.incarnation > self.incarnation:
            bits, high = 0, -1
        if order.seq > high:
            shift = min(order.seq - high, REPLAY_WINDOW)
            bits, high = (bits << shift | 1) & MASK, order.seq
        elif order.seq > high - REPLAY_WINDOW:
            bits |= 1 << (high - order.seq)
        packed = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        return Window(order.incarnation, high, packed)

    def _bits(self) -> int:
        return int.from_bytes(self.seen, "little")
