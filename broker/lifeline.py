"""The end of a connection, told once, to everybody who waits for one of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from broker.bus import BusLost

T = TypeVar("T")


class Lifeline:
    """A connection's one end. Libraries forget some of those who wait for an answer when it breaks; a wait
    under `unless_lost` always ends with it."""

    def __init__(self) -> None:
        self._loss: BusLost | None = None
        self._ended = asyncio.Event()
        self._scopes: set[asyncio.Timeout] = set()

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._loss is not None

    def cut(self, loss: BusLost) -> None:
        """The connection has ended so; the first to say it is right."""
        if self._loss is None:
            self._loss = loss
            self._ended.set()
            for scope in self._scopes:
                scope.reschedule(0)

    async def ended(self) -> BusLost:
        """Wait for the end."""
        await self._ended.wait()
        return self.loss()

    def loss(self) -> BusLost:
        """The end as an error for one more of those who waited, with a traceback of its own."""
        if self._loss is None:
            raise LookupError("the connection has not ended")
        fresh = BusLost(str(self._loss))
        fresh.__cause__ = self._loss.__cause__
        return fresh

    async def unless_lost(self, doing: Awaitable[T]) -> T:
        """Wait as long as the connection stands; raises `BusLost` when it does not any more."""
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.add(scope)
                try:
                    if self._loss is not None:
                        scope.reschedule(0)
                    return await doing
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if self._loss is None:
                raise
            raise self.loss() from self._loss
