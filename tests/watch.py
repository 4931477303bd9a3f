"""Which chunks pass between a coordinator and its devices: how often each is sent, when it has arrived."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from broker.bus import Bus, Connected, Delivery
from schemas.chunks import MAGIC, parse_chunk

Piece = tuple[str, str, bytes, int]  # "up" or "down", device, transfer, chunk


@dataclass
class Watch:
    """Counts every chunk when its sending begins, and when its receiver has acknowledged it."""

    sent: Counter[Piece] = field(default_factory=Counter)
    arrived: Counter[Piece] = field(default_factory=Counter)
    sent_in_vain: list[Piece] = field(default_factory=list)
    """Chunks whose sending began when they had arrived."""
    look: Callable[[], None] = lambda: None
    """Called after each chunk that was sent."""

    def around(self, bus: Bus) -> Bus:
        """The same bus, watched."""
        return WatchedBus(bus, self)

    def came(self, way: str) -> int:
        """How many chunks of this way have arrived."""
        return sum(bool(times) for piece, times in self.arrived.items() if piece[0] == way)

    def count(self, way: str) -> Counter[int]:
        """How many chunks of this way were sent how often."""
        return Counter(times for piece, times in self.sent.items() if piece[0] == way)

    def forget(self, way: str, device: str = "") -> None:
        """A receiver lost what it had written: of one device, or of all."""
        for piece in [p for p in self.arrived if p[0] == way and device in ("", p[1])]:
            del self.arrived[piece]


def piece_of(topic: str, payload: bytes) -> Piece | None:
    """What chunk a message is; None if it is none."""
    if not payload.startswith(MAGIC):
        return None
    _, _, way, device = topic.split("/")
    chunk = parse_chunk(payload)
    return way, device, chunk.transfer, chunk.index


class WatchedBus:
    """A bus whose chunks are counted."""

    def __init__(self, bus: Bus, watch: Watch) -> None:
        self._bus = bus
        self._watch = watch

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._bus.__aexit__(exc_type, exc, traceback)

    @property
    def problem(self) -> str:
        return self._bus.problem

    async def incoming(self) -> AsyncIterator[Delivery | Connected]:
        async for item in self._bus.incoming():
            piece = None if isinstance(item, Connected) else piece_of(item.topic, item.payload)
            if isinstance(item, Connected) or piece is None:
                yield item
            else:
                yield _Watched(item, self._watch, piece)

    async def publish(self, topic: str, payload: bytes) -> None:
        piece = piece_of(topic, payload)
        if piece is not None:
            self._watch.sent[piece] += 1
            if self._watch.arrived[piece]:
                self._watch.sent_in_vain.append(piece)
        await self._bus.publish(topic, payload)
        if piece is not None:
            self._watch.look()


class _Watched:
    def __init__(self, delivery: Delivery, watch: Watch, piece: Piece) -> None:
        self._delivery = delivery
        self._watch = watch
        self._piece = piece
        self.topic = delivery.topic
        self.payload = delivery.payload

    async def ack(self) -> None:
        self._watch.arrived[self._piece] += 1
        await self._delivery.ack()
