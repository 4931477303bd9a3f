"""A full disk is waited for, not died of: work that finds no room is done again until there is some."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final, ParamSpec, TypeVar

from broker.ports import Offload

P = ParamSpec("P")
R = TypeVar("R")

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
RETRY_S: Final = 1.0

log: Final = logging.getLogger(__name__)


def disk_full(error: OSError) -> bool:
    """Whether it says that a disk, or the share of it that we may use, is full."""
    return error.errno in FULL


class Room:
    """An `Offload` whose callers wait while the disk is full, until what they asked for was done.

    So a function that is run here may be run again after it raised OSError half-way. ``name`` is what
    messages call the disk. All other errors come out at once.
    """

    def __init__(self, offload: Offload, name: str) -> None:
        self._offload = offload
        self._name = name
        self._waiting = 0
        self._cause = ""

    @property
    def problem(self) -> str:
        """Why work waits, in one line with the remedy; empty while none does."""
        return f"{self._name}: {self._cause}; free space, and work goes on" if self._waiting else ""

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._persist(lambda: self._offload.run(function, *args, **kwargs))

    async def here(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As `run`, on the event loop: for small writes that share state with it."""

        async def attempt() -> R:
            return function(*args, **kwargs)

        return await self._persist(attempt)

    async def _persist(self, attempt: Callable[[], Awaitable[R]]) -> R:
        try:
            return await attempt()
        except OSError as error:
            if not disk_full(error):
                raise
            self._cause = error.strerror or str(error)
        self._waiting += 1
        if self._waiting == 1:
            log.error("%s", self.problem)
        try:
            done = await self._again(attempt)
        finally:
            self._waiting -= 1
        if not self._waiting:
            log.warning("%s: there is room again", self._name)
        return done

    async def _again(self, attempt: Callable[[], Awaitable[R]]) -> R:
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                return await attempt()
            except OSError as error:
                if not disk_full(error):
                    raise
