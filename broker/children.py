"""Child processes: the real Spawn port."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from broker.ports import Process

CHILD_UNREAD_BYTES_MAX = 1 << 20
"""Output of a child that we hold unread (twice that, at times); then the child has to wait."""


class _ChildStreams(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells the exit at once. asyncio's own ``wait`` waits for unread output too, and so may hang."""

    def __init__(self) -> None:
        super().__init__(limit=CHILD_UNREAD_BYTES_MAX, loop=asyncio.get_running_loop())
        self.exited = asyncio.Event()
        self.at_exit: Callable[[], None] | None = None

    def process_exited(self) -> None:
        super().process_exited()
        if self.at_exit is not None:
            self.at_exit()
        self.exited.set()


class _Process:
    """A child in a session of its own. `kill` also frees its pipes: call it when done, dead or not."""

    def __init__(self, transport: asyncio.SubprocessTransport, streams: _ChildStreams) -> None:
        self._transport = transport
        self._streams = streams
        self._stdin = cast("asyncio.StreamWriter", streams.stdin)
        self._stdout = cast("asyncio.StreamReader", streams.stdout)
        self._pid = transport.get_pid()

    @property
    def pid(self) -> int:
        return self._pid

    async def write(self, data: bytes) -> None:
        """Raises OSError (BrokenPipeError, ConnectionResetError) when the child reads no more."""
        if self._stdin.is_closing():
            raise BrokenPipeError(f"process {self._pid} reads no more")
        self._stdin.write(data)
        await self._stdin.drain()

    async def read_exactly(self, size: int) -> bytes:
        try:
            return await self._stdout.readexactly(size)
        except asyncio.IncompleteReadError as error:
            have = len(error.partial)
            raise EOFError(f"process {self._pid} closed its output after {have} of {size} bytes") from error

    def rss_bytes(self) -> int:
        if self._transport.get_returncode() is not None:
            return 0
        try:
            descriptor = os.open(f"/proc/{self._pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fields = os.read(descriptor, 256).split()
            finally:
                os.close(descriptor)
        except OSError:
            return 0
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0

    def kill(self) -> None:
        if self._transport.get_returncode() is not None:
            self._transport.close()
            return
        # Closing a living child's transport would race with its watcher for the exit status.
        self._streams.at_exit = self._transport.close
        # The child leads a group of its own: its children go with it.
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    async def wait(self) -> int:
        await self._streams.exited.wait()
        return cast("int", self._transport.get_returncode())


class SystemSpawn:
    """Starts children in sessions of their own: neither Ctrl-C nor our death reaches them.

    A child learns of our end from the end of its standard input.
    """

    async def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path | None = None
    ) -> Process:
        loop = asyncio.get_running_loop()
        descriptor: int | None = None
        if stderr is not None:
            descriptor = os.open(stderr, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            transport, streams = await loop.subprocess_exec(
                _ChildStreams,
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=descriptor,
                env=dict(env),
                start_new_session=True,
            )
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return _Process(transport, streams)
