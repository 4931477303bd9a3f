"""A thin line to a broker: a TCP proxy that passes so many bytes per second each way, and has outages."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import suppress
from itertools import cycle
from typing import Literal, Self

PIECE_BYTES = 4_096
BUFFER_BYTES = 16_384  # the system's, per direction: what a sender believes gone is nearly so

Way = Literal["up", "down"]  # to the broker, from it


class SlowLink:
    """Enter it; clients connect to ``port``. `outages` cuts or freezes the line for part of the time."""

    def __init__(self, target_port: int, bytes_per_s: int) -> None:
        self.port = 0
        self.outages_met: Counter[tuple[Way, str]] = Counter()
        """By the way that most bytes had gone, and "cut" or "frozen"."""
        self._passed: Counter[Way] = Counter()  # bytes since the last outage
        self._enough = asyncio.Event()
        self._target_port = target_port
        self._bytes_per_s = bytes_per_s
        self._up = True
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=PIECE_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._break()

    async def outages(self, every_bytes: int, last_s: float) -> None:
        """Until cancelled: whenever so many bytes have passed, the line is down for ``last_s``. Connections
        are cut, or, every second time, stand while nothing passes."""
        for what in cycle(("cut", "frozen")):
            while self._passed.total() < every_bytes:
                self._enough.clear()
                await self._enough.wait()
            self.outages_met[self._passed.most_common(1)[0][0], what] += 1
            self._passed.clear()
            self._up = False
            self._flowing.clear()
            if what == "cut":
                self._break()
            await asyncio.sleep(last_s)
            self._up = True
            self._flowing.set()

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._up:
            writer.transport.abort()
            return
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self._target_port, limit=PIECE_BYTES
            )
            self._writers |= {writer, far_writer}
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer, "up"), name="to the broker")
                    group.create_task(self._pump(far_reader, writer, "down"), name="from the broker")
            finally:
                self._writers -= {writer, far_writer}
                writer.transport.abort()
                far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """Until one side ends; then the other one does, too."""
        with suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                await asyncio.sleep(len(data) / self._bytes_per_s)
                await self._flowing.wait()
                writer.write(data)
                self._passed[way] += len(data)
                self._enough.set()
                await writer.drain()
        writer.transport.abort()
