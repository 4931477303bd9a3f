"""Seeded faults around any bus: drop, duplicate, hold back, delay, partition.

Loss when sending is loss *after* the broker took the message: ``publish`` returns as if all was well,
which is what a killed broker, a full queue or a denied topic look like from here. Waits are
``asyncio.sleep`` only, so a virtual clock makes them free; the same seed and the same order of calls
give the same faults.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from broker.bus import Bus, BusError, BusRefused, Connected, Delivery


@dataclass(frozen=True, slots=True)
class Faults:
    """What may happen to a message in one direction. Probabilities in [0, 1], times in seconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    hold: float = 0.0
    """Probability of being held back for up to ``hold_s_max``, so that later messages overtake it."""
    hold_s_max: float = 1.0
    delay_s_max: float = 0.0
    """Every message takes a time drawn from [0, this]; arriving messages keep their order."""


NO_FAULTS = Faults()


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What happens to what we send and to what arrives; by default nothing."""

    sending: Faults = field(default_factory=Faults)
    receiving: Faults = field(default_factory=Faults)


@dataclass(frozen=True, slots=True)
class _Fate:
    copies: int
    held_s: float
    delay_s: float


class FaultyBus:
    """A `Bus` that does to the messages of ``bus`` what the plan says.

    It enters and leaves ``bus`` itself. A message lost on arrival was acknowledged to the broker.
    Messages still held back when the context ends are lost. ``counts`` is told of each fault.
    """

    def __init__(
        self, bus: Bus, rng: random.Random, plan: FaultPlan, counts: Counter[str] | None = None
    ) -> None:
        self._bus = bus
        self._counts = Counter() if counts is None else counts
        self._rng = rng
        self._plan = plan
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        # Bounded by the window of ``bus``: what lies here is not acknowledged yet.
        self._arrived: deque[tuple[float, Delivery | Connected]] = deque()
        self._pumped = plan.receiving != NO_FAULTS  # else arrivals are read where they come from
        self._refused: BusRefused | None = None
        self._news = asyncio.Event()
        self._whole = asyncio.Event()
        self._whole.set()

    def calm(self) -> None:
        """From now on nothing happens to messages."""
        self._plan = FaultPlan()

    def partition(self) -> None:
        """From now on nothing passes: ``publish`` waits, arrivals wait."""
        self._whole.clear()

    def heal(self) -> None:
        """End the partition; what waited goes on."""
        self._whole.set()

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        await self._group.__aenter__()
        if self._pumped:
            self._start(self._pump(), "faulty bus: arrivals")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            # Only a cancellation concerns the group; any other error of the body passes by unwrapped.
            if isinstance(exc, asyncio.CancelledError):
                await self._group.__aexit__(exc_type, exc, traceback)
            else:
                await self._group.__aexit__(None, None, None)
        finally:
            await self._bus.__aexit__(exc_type, exc, traceback)

    @property
    def problem(self) -> str:
        return self._bus.problem

    async def incoming(self) -> AsyncIterator[Delivery | Connected]:
        loop = asyncio.get_running_loop()
        straight = None if self._pumped else self._bus.incoming()
        while True:
            if straight is not None and not self._arrived:
                self._arrived.append((0.0, await anext(straight)))
            while self._arrived:
                if (wait_s := self._arrived[0][0] - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                await self._whole.wait()
                # Taken out after the last wait: a cancelled reader loses nothing.
                yield self._arrived.popleft()[1]
            if straight is not None:
                continue
            if self._refused is not None:
                raise BusRefused(str(self._refused)) from self._refused
            self._news.clear()
            await self._news.wait()

    async def publish(self, topic: str, payload: bytes) -> None:
        fate = self._draw(self._plan.sending)
        if fate.delay_s:
            await asyncio.sleep(fate.delay_s)
        await self._whole.wait()

        async def late() -> None:
            await self._whole.wait()
            # The sender was told that all is well: whatever fails now is loss.
            with suppress(BusError):
                await self._bus.publish(topic, payload)

        for _ in range(fate.copies):
            if fate.held_s:
                self._later(fate.held_s, late)
            else:
                await self._bus.publish(topic, payload)

    async def _pump(self) -> None:
        try:
            async for item in self._bus.incoming():
                if isinstance(item, Connected):
                    self._arrive(item)
                else:
                    await self._receive(item)
        except BusRefused as refused:
            self._refused = refused
            self._news.set()

    def _arrive(self, item: Delivery | Connected, delay_s: float = 0.0) -> None:
        self._arrived.append((asyncio.get_running_loop().time() + delay_s, item))
        self._news.set()

    async def _receive(self, delivery: Delivery) -> None:
        fate = self._draw(self._plan.receiving)
        if not fate.copies:
            await delivery.ack()

        async def late() -> None:
            self._arrive(delivery)

        for _ in range(fate.copies):
            if fate.held_s:
                self._later(fate.held_s, late)
            else:
                self._arrive(delivery, fate.delay_s)

    def _later(self, wait_s: float, action: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await asyncio.sleep(wait_s)
            await action()

        self._start(run(), "faulty bus: held back")

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _draw(self, faults: Faults) -> _Fate:
        # Always the same number of draws, so that one changed probability does not shift all others.
        draw = self._rng.random
        drop, duplicate, hold, hold_share, delay_share = draw(), draw(), draw(), draw(), draw()
        fate = _Fate(
            copies=0 if drop < faults.drop else 2 if duplicate < faults.duplicate else 1,
            held_s=(1 - hold_share) * faults.hold_s_max if hold < faults.hold else 0.0,
            delay_s=delay_share * faults.delay_s_max,
        )
        if fate.copies != 1:
            self._counts["duplicated" if fate.copies else "lost"] += 1
        if fate.held_s and fate.copies:
            self._counts["held back"] += 1
        return fate
