"""What one life of a party sends and takes: its line to the broker, and what must hold of what it says.

A line ends with its life: a process that was killed says nothing more, also where its tasks are only about to
be cancelled.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import msgpack

from broker.bus import Bus, Connected, Delivery
from schemas import chunks, envelope
from schemas.envelope import Clear, Seal
from schemas.ids import transfer_id
from tests.sim.disk import SimFiles

RECIPIENT_AT = Clear.__struct_fields__.index("recipient")
BODY_AT = Seal.__struct_fields__.index("body")

Life = tuple[str, int]  # party, start of its machine


@dataclass
class Laws:
    """What must hold of all that devices say:

    - the update that answers a request is made once: whatever is killed, the same ciphertext is offered;
    - a chunk is sent again only behind a new offer: what was granted before that offer counts no more.
    """

    liars: frozenset[str] = frozenset()
    ours: bytes = b""
    """Id of the coordinator's own key: what is sealed to another is an update."""
    made: dict[tuple[str, bytes], bytes] = field(default_factory=dict)  # by device and request's key: digest
    problems: list[str] = field(default_factory=list)
    _sent: defaultdict[tuple[Life, bytes], set[int]] = field(default_factory=lambda: defaultdict(set))

    def said(self, life: Life, payload: bytes) -> None:
        """A device is about to send this."""
        if life[0] in self.liars:
            return
        if payload.startswith(chunks.MAGIC):
            chunk = chunks.parse_chunk(payload)
            sent = self._sent[life, chunk.transfer]
            if chunk.index in sent:
                self.problems.append(
                    f"{life[0]} sends chunk {chunk.index} again, with no new offer before it"
                )
            sent.add(chunk.index)
        elif payload.startswith(envelope.MAGIC):
            recipient, digest = _recipient_and_digest(payload)
            if recipient != self.ours:
                if self.made.setdefault((life[0], recipient), digest) != digest:
                    self.problems.append(f"{life[0]} made an update anew that was offered before")
                self._sent[life, transfer_id(digest)].clear()


def _recipient_and_digest(payload: bytes) -> tuple[bytes, bytes]:
    """Of an envelope that a party of ours made; without all the checks of `schemas.envelope.parse`."""
    _, size = envelope.PREFIX.unpack_from(payload)
    clear, seal, _ = msgpack.unpackb(payload[envelope.PREFIX.size :][:size])
    return clear[RECIPIENT_AT], seal[BODY_AT]


class Line:
    """A bus for one life of a party. ``told`` is called with what is sent, ``acks`` before each
    acknowledgement; both may raise. ``takes`` says how long the next message is on its way."""

    def __init__(
        self,
        bus: Bus,
        files: SimFiles,
        told: Callable[[bytes], None] = lambda payload: None,
        takes: Callable[[], float] | None = None,
    ) -> None:
        self._bus = bus
        self._files = files
        self._life = files.life
        self._told = told
        self._takes = takes
        self.acks: Callable[[], None] = lambda: None

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
            if isinstance(item, Connected):
                yield item
                continue
            if self._takes is not None:
                await asyncio.sleep(self._takes())
            yield _Taken(item, self)

    async def publish(self, topic: str, payload: bytes) -> None:
        self.check()
        self._told(payload)
        if self._takes is not None:
            await asyncio.sleep(self._takes())
            self.check()
        await self._bus.publish(topic, payload)

    def check(self) -> None:
        """Raises OSError once this life is over."""
        if self._files.life != self._life:
            raise OSError("this machine was stopped")


class _Taken:
    __slots__ = ("_delivery", "_line", "payload", "topic")

    def __init__(self, delivery: Delivery, line: Line) -> None:
        self._delivery = delivery
        self._line = line
        self.topic = delivery.topic
        self.payload = delivery.payload

    async def ack(self) -> None:
        self._line.acks()
        self._line.check()
        await self._delivery.ack()
