"""A bus with a coordinator inside, for enrolment: it answers each join and each proof at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from broker.bus import Connected, Delivery
from schemas.enrolment import JOIN_MAGIC, Join, open_join
from schemas.events import Enrolled
from tests.edge_agent.federation import Federation


@dataclass
class Arrived:
    payload: bytes
    topic: str = "down"
    acked: bool = False

    async def ack(self) -> None:
        self.acked = True


@dataclass
class AnsweringBus:
    """``answers`` makes the welcomes to a join, by default one good one. ``joins`` are those that came."""

    federation: Federation
    answers: Callable[[Join], list[bytes]] | None = None
    silent: int = 0  # joins that get no answer
    box: bytes = b""  # of the device, if it doesn't join
    joins: list[Join] = field(default_factory=list)
    proofs: list[bytes] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.queue: asyncio.Queue[Delivery | Connected] = asyncio.Queue()
        self.queue.put_nowait(Connected(1))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    @property
    def problem(self) -> str:
        return ""

    async def incoming(self) -> AsyncIterator[Delivery | Connected]:
        while True:
            yield await self.queue.get()

    async def publish(self, topic: str, payload: bytes) -> None:
        await asyncio.sleep(0)
        if payload.startswith(JOIN_MAGIC):
            join, _, _ = open_join(payload, self.federation.enrolment)
            self.joins.append(join)
            self.box = join.box
            if len(self.joins) > self.silent:
                welcomes = self.answers(join) if self.answers else [self.federation.welcome(join)]
                for welcome in welcomes:
                    self.queue.put_nowait(Arrived(welcome))
        else:
            self.proofs.append(payload)
            self.queue.put_nowait(Arrived(self.federation.envelope_to(self.box, Enrolled())))
