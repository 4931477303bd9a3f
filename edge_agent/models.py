"""Model versions on this device: pulled chunk by chunk, kept sealed as they came.

A file under its final name is whole and durable; one that still grows is called ``….part``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.bus import BusUndelivered
from broker.ports import Files, Offload
from broker.transfer import Spool
from schemas.chunks import Chunk
from schemas.errors import WireError
from schemas.events import ChunkPull
from schemas.limits import PULL_CHUNKS_MAX, RESEND_CAP_S, RESEND_FIRST_S
from schemas.models import Manifest

log: Final = logging.getLogger("fedbus.models")

DIR: Final = "models"
PART: Final = ".part"
KEPT_PER_JOB: Final = 2

Send = Callable[[ChunkPull], Awaitable[object]]


class Models:
    """The folder of sealed models, and at most one pull at a time."""

    def __init__(self, files: Files, offload: Offload, directory: Path, send: Send) -> None:
        self._files = files
        self._offload = offload
        self._folder = directory / DIR
        self._send = send
        self._transfer = b""
        self._spool: Spool | None = None
        self._asked: set[int] = set()
        self._changed = asyncio.Event()

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
        self._asked.discard(chunk.index)
        self._changed.set()
        return True

    def again(self) -> None:
        """Ask again for what is missing: a new connection stands."""
        self._asked.clear()
        self._changed.set()

    async def pull(self, manifest: Manifest) -> Path:
        """The file of this version's sealed chunks, once it is whole and durable. Waits for ever."""
        self._files.make_dir(self._folder)
        path = self._folder / _name(manifest)
        if self._files.exists(path):
            return path
        spool = Spool(
            self._files,
            path.with_name(path.name + PART),
            digests=manifest.chunks,
            content_bytes=manifest.model_bytes,
            chunk_bytes=manifest.chunk_bytes,
        )
        await self._offload.run(spool.open)
        self._spool, self._transfer = spool, manifest.transfer()
        self._asked.clear()
        try:
            await self._fill(spool)
            await self._offload.run(spool.finish)
        finally:
            self._spool, self._transfer = None, b""
            spool.close()
        self._files.rename(spool.path, path)
        self._files.sync_dir(self._folder)
        self._prune(manifest.job)
        return path

    async def _fill(self, spool: Spool) -> None:
        delay_s = RESEND_FIRST_S
        while not spool.complete:
            self._changed.clear()
            room = PULL_CHUNKS_MAX - len(self._asked)
            # Half a window is waited for, so that requests stay few.
            if room >= PULL_CHUNKS_MAX // 2:
                wanted = [index for index in spool.missing() if index not in self._asked][:room]
                if wanted:
                    self._asked.update(wanted)
                    with suppress(BusUndelivered):
                        await self._send(ChunkPull(transfer=self._transfer, chunks=wanted))
            try:
                async with asyncio.timeout(delay_s):
                    await self._changed.wait()
                delay_s = RESEND_FIRST_S
            except TimeoutError:
                self._asked.clear()
                delay_s = min(2 * delay_s, RESEND_CAP_S)

    def drop(self, path: Path) -> None:
        """Remove a file that turned out to be damaged."""
        self._files.remove(path)

    def forget(self, job: str) -> None:
        """Remove all versions of a job."""
        for _, name in self._versions(job):
            if self._spool is None or name != self._spool.path.name:
                self._files.remove(self._folder / name)

    def forget_all(self) -> None:
        """Remove every model."""
        self._files.remove(self._folder)

    def _prune(self, job: str) -> None:
        for _, name in self._versions(job)[:-KEPT_PER_JOB]:
            self._files.remove(self._folder / name)

    def _versions(self, job: str) -> list[tuple[int, str]]:
        """(version, file name), oldest first."""
        found = []
        for name in self._files.names(self._folder):
            owner, version, *_ = name.split(".")
            if owner == job:
                found.append((int(version), name))
        return sorted(found)


def _name(manifest: Manifest) -> str:
    return f"{manifest.job}.{manifest.version}.{manifest.transfer().hex()}"
