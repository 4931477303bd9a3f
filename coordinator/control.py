"""The operator's door to a live coordinator: a Unix socket in the state directory, mode 0600.

One JSON document per line each way: ``{"op": …}`` in, ``{"ok": …}`` or ``{"error": …}`` out. Commands that
change something become inputs of the core and are answered when they are durable.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from broker.bus import BusError
from broker.journal import JournalError

SOCKET = "control.sock"
LINE_BYTES_MAX = 64 << 20
PATH_BYTES_MAX = 100  # of a Unix socket's name (108 on Linux, with the end and a margin)
Handle = Callable[[dict[str, Any]], Awaitable[Any]]


class NotServing(Exception):
    """No coordinator answers for this directory."""


class CommandFailed(Exception):
    """The coordinator refused the command; the text is for the operator."""


@contextmanager
def _socket_path(directory: Path) -> Iterator[Path]:
    """Short enough to bind: through the opened directory if the name itself is too long (unix(7))."""
    path = directory / SOCKET
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield path
        return
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        through = Path("/proc/self/fd", str(opened))
        if not through.exists():
            raise OSError(f"{path}: too long a name for a Unix socket; use a shorter state directory")
        yield through / SOCKET
    finally:
        os.close(opened)


async def serve(directory: Path, handle: Handle) -> None:
    """Answer commands until cancelled. ``handle`` raises CommandFailed to refuse one."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(await _reply(line, handle) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the operator's program went away, or sent a line without end
        except asyncio.CancelledError:
            pass  # the coordinator ends; Python 3.11 reports a handler that was cancelled as an error
        finally:
            writer.close()

    with _socket_path(directory) as path:
        path.unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(answer, path, limit=LINE_BYTES_MAX)
        finally:
            os.umask(previous)
        async with server:
            try:
                await server.serve_forever()
            finally:
                path.unlink(missing_ok=True)


async def _reply(line: bytes, handle: Handle) -> bytes:
    try:
        command = msgspec.json.decode(line, type=dict[str, Any])
        return msgspec.json.encode({"ok": await handle(command)})
    except CommandFailed as error:
        return msgspec.json.encode({"error": str(error)})
    except (OSError, BusError, JournalError) as error:
        return msgspec.json.encode({"error": f"the coordinator could not do that: {error}"})
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
        return msgspec.json.encode({"error": f"not a command: {error!r}"})


async def call(directory: Path, command: dict[str, Any]) -> Any:
    """Ask the coordinator that serves ``directory``. Raises `NotServing` or `CommandFailed`."""
    try:
        with _socket_path(directory) as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=LINE_BYTES_MAX)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotServing(
            f"no coordinator serves {directory}; start it with `fedbus-coordinator serve --dir {directory}`"
        ) from error
    try:
        writer.write(msgspec.json.encode(command) + b"\n")
        await writer.drain()
        line = await reader.readline()
    except ConnectionError as error:
        raise NotServing(f"the coordinator of {directory} stopped before it answered; ask again") from error
    finally:
        writer.close()
    if not line:
        raise NotServing(f"the coordinator of {directory} stopped before it answered; ask again")
    reply = msgspec.json.decode(line, type=dict[str, Any])
    if "error" in reply:
        raise CommandFailed(reply["error"])
    return reply["ok"]
