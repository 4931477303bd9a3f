"""Model versions on this device: pulled chunk by chunk, kept sealed as they came.

A pull names the next chunks that are missing here, so the coordinator learns from it what has arrived. It is
said again while chunks come; when none come for longer than chunks take on this link, or the link may stand,
the same pull says that they are lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.bus import BusLost, BusUndelivered
from broker.ports import Ports
from broker.transfer import Spool
from edge_agent.kept import Shelf
from schemas.chunks import Chunk
from schemas.errors import WireError
from schemas.events import ChunkPull, ModelOffer
from schemas.limits import KIB, PULL_CHUNKS_MAX, RESEND_CAP_S, RESEND_FIRST_S
from schemas.models import Manifest

log: Final = logging.getLogger("fedbus.models")

KEPT_PER_JOB: Final = 2  # versions of a job that runs
ASIDE_CHUNKS: Final = 2  # pulled at a time by what must not keep training waiting
TELL_S: Final = 0.25  # how long arrivals may wait for others before they are told of
LINK_BYTES_PER_S: Final = 32 * KIB  # what is expected of a link until its first chunk came
STANDS_S: Final = 10.0  # how long a link may stand and go on, as radio links do
PATIENCE_MAX_S: Final = 10 * RESEND_CAP_S

Send = Callable[[ChunkPull], Awaitable[object]]


class Models:
    """At most one pull at a time, into the folder of sealed models. ``send`` raises `BusUndelivered` at once
    when there is no connection.

    With ``behind``, it asks for few chunks at a time, and for none while that one pulls.
    """

    def __init__(self, ports: Ports, shelf: Shelf, send: Send, *, behind: Models | None = None) -> None:
        self._files = ports.files
        self._offload = ports.offload
        self._shelf = shelf
        self._send = send
        self._behind = behind
        self._window = ASIDE_CHUNKS if behind else PULL_CHUNKS_MAX
        self._idle = asyncio.Event()
        self._idle.set()
        self._transfer = b""
        self._spool: Spool | None = None
        self._changed = asyncio.Event()
        self._told = -1
        """How many chunks we had when we last pulled, as far as the coordinator may know."""
        self._reconnected = False
        self._chunk_s = 0.0
        """How long a chunk takes, by what came lately."""

    def take(self, chunk: Chunk) -> bool:
        """Keep a chunk that is being pulled; False if nobody asked for it, or it is not the right one.

        Raises OSError when it can't be written.
        """
        if self._spool is None or chunk.transfer != self._transfer:
            return False
        try:
            self._spool.accept(chunk.index, chunk.sealed)
        except WireError as error:
            log.warning("a model chunk was not taken: %s", error)
            return False
        self._changed.set()
        return True

    def again(self) -> None:
        """A new connection stands: wait anew for what the broker may have kept, then ask again."""
        self._reconnected = True
        self._changed.set()

    async def pull(self, offer: ModelOffer, manifest: Manifest) -> Path:
        """The file of this version's sealed chunks, once it is whole and durable. Waits for ever."""
        path = self._shelf.enter(offer, manifest)
        if self._shelf.whole(path):
            return path
        self._idle.clear()
        try:
            await self._fetch(self._shelf.part(path), manifest)
        finally:
            self._idle.set()
        self._shelf.finish(path, offer)
        self._shelf.prune(manifest.job, KEPT_PER_JOB)
        return path

    async def _fetch(self, part: Path, manifest: Manifest) -> None:
        spool = Spool(
            self._files,
            part,
            digests=manifest.chunks,
            content_bytes=manifest.model_bytes,
            chunk_bytes=manifest.chunk_bytes,
        )
        try:
            await self._offload.run(spool.open)
            self._spool, self._transfer = spool, manifest.transfer()
            self._reconnected, self._chunk_s = False, spool.sealed_bytes(0) / LINK_BYTES_PER_S
            self._told = -1
            await self._fill(spool)
            with suppress(TimeoutError):  # it only gives back credit, which lapses anyway
                async with asyncio.timeout(RESEND_FIRST_S):
                    await self._say(spool, [])
            await self._offload.run(spool.finish)
        finally:
            self._spool, self._transfer = None, b""
            spool.close()

    async def _fill(self, spool: Spool) -> None:
        patience_s, clock = 0.0, asyncio.get_running_loop().time
        sent_max = 1  # chunks that the coordinator sends before it hears of arrivals; it adds one for each
        while not spool.complete:
            if self._behind is not None:
                await self._behind.rest()
            have, wanted = len(spool.have), spool.missing()[: self._window]
            since_s = clock()
            await self._say(spool, wanted)
            patience_s = max(patience_s, 2 * self._chunk_s, RESEND_FIRST_S)
            if not await self._more(spool, have, patience_s, since_s):
                patience_s = min(2 * patience_s, PATIENCE_MAX_S)
                continue
            patience_s = 0.0
            # Half of them are waited for, but not for long: pulls stay few, and credit comes back soon.
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_S):
                    while 2 * (len(spool.have) - have) < min(sent_max, len(wanted)):
                        await self._more(spool, len(spool.have), RESEND_CAP_S, clock())
            sent_max += len(spool.have) - have

    async def _more(self, spool: Spool, have: int, patience_s: float, since_s: float) -> bool:
        """Whether more than ``have`` chunks came in time. Without a reconnection the link may only stand;
        after one the broker sends at once what it kept. Learns how long a chunk takes, from ``since_s`` on,
        when the pull was begun: its acknowledgement may have come behind the first chunks.
        """
        clock = asyncio.get_running_loop().time
        end_s = clock() + max(patience_s, STANDS_S)
        while len(spool.have) == have:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end_s):
                    await self._changed.wait()
            except TimeoutError:
                return False
            if self._reconnected:
                self._reconnected, since_s, end_s = False, clock(), clock() + patience_s
                if self._told != have:
                    return False
        self._chunk_s = min(max(clock() - since_s, self._chunk_s / 2), RESEND_CAP_S)
        return True

    async def _say(self, spool: Spool, wanted: list[int]) -> None:
        have = len(spool.have)
        try:
            await self._send(ChunkPull(transfer=self._transfer, chunks=wanted))
        except BusLost:
            pass  # it may have arrived: said again it would claim that what was sent is lost
        except BusUndelivered:
            return
        self._told = have

    async def rest(self) -> None:
        """Wait until nothing is being pulled."""
        await self._idle.wait()

    def drop(self, path: Path) -> None:
        """Remove a file that turned out to be damaged."""
        self._shelf.remove(path)
