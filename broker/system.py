"""The real ports of a Linux machine: with `broker.children`, all that touches clock, disk and threads.

Imports stay light, because the resident agent imports this module.
"""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from broker.children import SystemSpawn
from broker.ports import File, LockHeld, Ports

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

P = ParamSpec("P")
R = TypeVar("R")

OFFLOAD_THREADS = 3  # the two halves of a fold, and the journal's commits and arriving chunks beside them

_READ_BYTES = 1 << 20


def system_ports() -> Ports:
    """The ports of this machine. Cheap: threads start with the first call of ``offload.run``."""
    return Ports(
        clock=_Clock(),
        files=_Files(),
        lock=_Lock(),
        offload=_Offload(),
        spawn=SystemSpawn(),
        entropy=_Entropy(),
    )


class _Clock:
    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time_ns() / 1e9


class _File:
    """An open descriptor. ``close`` may be called twice; any other call after it raises OSError."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def append(self, data: bytes | memoryview) -> None:
        # Not O_APPEND: on Linux that would make pwrite ignore its offset.
        self.write_at(self.size(), data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                rest = rest[written:]
                offset += written
        except OSError as error:
            # The system does not say which file: whoever reads the message wants to know.
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def read_at(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        have = len(data)
        while have < size and (data := os.pread(self._descriptor, size - have, offset + have)):
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def read_into(self, offset: int, out: memoryview) -> int:
        have = 0
        while have < len(out) and (got := os.preadv(self._descriptor, [out[have:]], offset + have)):
            have += got
        return have

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _Files:
    """The file system. Modes hold as given, whatever the umask."""

    def open(self, path: Path, *, create: bool = False, mode: int = 0o600) -> File:
        if create:
            with suppress(FileExistsError):
                return self.create(path, mode=mode)
        return _File(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)

    def create(self, path: Path, *, mode: int = 0o600) -> File:
        return _File(_create(path, mode), path)

    def read(self, path: Path) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts: list[bytes] = []
            while part := os.read(descriptor, _READ_BYTES):
                parts.append(part)
        finally:
            os.close(descriptor)
        return b"".join(parts)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def names(self, path: Path) -> list[str]:
        try:
            return sorted(entry.name for entry in path.iterdir())
        except FileNotFoundError:
            return []

    def make_dir(self, path: Path, *, mode: int = 0o700) -> None:
        if path.is_dir():
            return
        if not path.parent.is_dir():
            self.make_dir(path.parent, mode=mode)
        try:
            path.mkdir(mode)
        except FileExistsError:
            if not path.is_dir():
                raise
        else:
            path.chmod(mode)
        self.sync_dir(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                _remove_tree(path)
            else:
                path.unlink()

    def sync_dir(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _create(path: Path, mode: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_tree(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _remove_tree(entry)
        else:
            entry.unlink()
    path.rmdir()


class _Lock:
    """``flock`` on a file that holds the owner's pid. The file stays: removing it would be a race."""

    @contextmanager
    def hold(self, path: Path) -> Iterator[None]:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                message = f"{path}: held by process {holder}; stop that process, or use another directory"
                raise LockHeld(message) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


class _Offload:
    """Three threads, started when first needed.

    A cancelled call ends only once its function has ended (or will never start), so what the function
    uses may be closed afterwards.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        call = partial(function, *args, **kwargs)
        job = self._threads().submit(contextvars.copy_context().run, call)
        outcome = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            if not job.cancel():
                while not outcome.done():
                    # A second cancellation changes nothing: the first is raised below.
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([outcome])
            raise

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(OFFLOAD_THREADS, thread_name_prefix="fedbus-offload")
        return self._pool


class _Entropy:
    def random_bytes(self, size: int) -> bytes:
        return os.urandom(size)
