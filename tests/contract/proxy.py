"""TCP between a client and a broker that a test can cut, restore and stall."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self


class Proxy:
    """Listens on ``port`` (of 127.0.0.1) and passes everything on to ``target_port``."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.held = asyncio.Event()
        """Set once bytes arrived while stalled."""
        self.passed_bytes = 0
        """From the broker to clients."""
        self._target_port = target_port
        self._whole = True
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._turned_away = asyncio.Event()
        self._far: set[asyncio.StreamWriter] = set()
        self._near: set[asyncio.StreamWriter] = set()
        self._detached: set[asyncio.StreamWriter] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._whole = False
        self._break()
        await self._idle.wait()

    async def cut(self) -> None:
        """Break all connections; returns once a client has tried again in vain and the broker has noticed."""
        self._whole = False
        self._turned_away.clear()
        for writer in self._near:
            writer.transport.abort()
        await self._turned_away.wait()
        await self._idle.wait()

    def restore(self) -> None:
        """Let connections through again."""
        self._flowing.set()
        self._whole = True

    def stall(self) -> None:
        """Keep the connections, pass nothing on until `restore`."""
        self.held.clear()
        self._flowing.clear()

    def snap(self) -> None:
        """Break all connections, but let new ones through."""
        self._break()
        self._flowing.set()

    def detach(self) -> None:
        """Break the clients' side only: the broker does not learn that they are gone."""
        self._detached |= self._near
        for writer in self._near:
            writer.transport.abort()

    async def idle(self) -> None:
        """Wait until both sides of every connection are closed."""
        await self._idle.wait()

    def _break(self) -> None:
        for writer in self._near | self._far:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            self._turned_away.set()
            return
        self._open += 1
        self._idle.clear()
        self._near.add(writer)
        try:
            with suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
                self._far.add(far_writer)
                try:
                    async with asyncio.TaskGroup() as group:
                        back = group.create_task(self._pump_back(far_reader, writer))
                        async for _ in self._pump(reader, far_writer):
                            pass
                        if writer in self._detached:
                            await asyncio.wait([back])
                        elif far_writer.can_write_eof():
                            with suppress(OSError):  # the broker may be gone, too
                                far_writer.write_eof()
                finally:
                    self._far.discard(far_writer)
                    far_writer.transport.abort()
        finally:
            self._near.discard(writer)
            writer.transport.abort()
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _pump_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for passed_bytes in self._pump(reader, writer):
            self.passed_bytes += passed_bytes
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[int]:
        """Until one side ends; what passed, piece by piece."""
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if not self._flowing.is_set():
                    self.held.set()
                    await self._flowing.wait()
                writer.write(data)
                yield len(data)
                await writer.drain()
