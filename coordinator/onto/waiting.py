"""Waiting for what somebody says at a broker, with patience that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from broker.bus import Bus, BusUndelivered
from coordinator.onto import Silence
from schemas.limits import RESEND_FIRST_S

PATIENCE_S: Final = 60.0
SEND_S: Final = 20.0  # for a connection to come, and the broker to take what is said
AGAIN_S: Final = 0.5
T = TypeVar("T")
Say = Callable[[], Awaitable[object]]


class Waiting:
    """Of one party, ``me``, whose way is ``bus``; ``remedy`` ends the text for a silence with a sound bus."""

    def __init__(self, bus: Bus, me: str, remedy: str) -> None:
        self._bus, self._me, self._remedy = bus, me, remedy
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something was heard: look again."""
        self._changed.set()

    async def heard(
        self, look: Callable[[], T | None], what: str, say: Say, patience_s: float = PATIENCE_S
    ) -> T:
        """What ``look`` finds, once it finds something; meanwhile ``say`` is said again, ever more rarely.

        Raises `Silence` when there is no ``what`` within ``patience_s``.
        """
        delay_s = RESEND_FIRST_S
        try:
            async with asyncio.timeout(patience_s):
                while (found := look()) is None:
                    self._changed.clear()
                    try:
                        async with asyncio.timeout(delay_s):
                            await self._changed.wait()
                    except TimeoutError:
                        delay_s *= 2
                        with suppress(BusUndelivered):
                            await say()
                return found
        except TimeoutError:
            raise Silence(f"{self._me}: no {what} within {patience_s:g} s; {self._cause()}") from None

    async def said(self, say: Say) -> object:
        """Say it until the broker has taken it. Raises `Silence` when it takes nothing."""
        try:
            async with asyncio.timeout(SEND_S):
                while True:
                    try:
                        return await say()
                    except BusUndelivered:
                        await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            raise Silence(f"{self._me}: nothing was sent within {SEND_S:g} s; {self._cause()}") from None

    def _cause(self) -> str:
        return self._bus.problem or self._remedy
