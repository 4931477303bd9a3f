"""The six doors to the machine: clock, files, lock, offload, spawn, entropy.

Everything else in fedbus reaches time, disk, threads, processes and randomness through these, so that
the same code runs in production, in replay and in the simulation. ``system.py`` holds the real ones.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

DRAFTS_MAX: Final = 100  # of exports to one file that were killed


class LockHeld(Exception):
    """Another process holds the lock."""


class Clock(Protocol):
    def monotonic_s(self) -> float:
        """Seconds since some start; never goes back. Waiting is done with ``asyncio.sleep``."""

    def wall_s(self) -> float:
        """Seconds since 1970, as this machine believes. For people and for token expiry only."""


class File(Protocol):
    """An open file. Offsets and sizes are bytes. Errors are OSError."""

    def append(self, data: bytes | memoryview) -> None: ...
    def write_at(self, offset: int, data: bytes | memoryview) -> None: ...
    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes; fewer at the end of the file."""

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill ``out`` from ``offset``, without a copy between; the bytes read, fewer at the end."""

    def sync(self) -> None:
        """Return once what was written survives a power cut (fdatasync)."""

    def size(self) -> int: ...
    def truncate(self, size: int) -> None: ...
    def close(self) -> None: ...


class Files(Protocol):
    """A file system. All calls block; large ones go through `Offload`."""

    def open(self, path: Path, *, create: bool = False, mode: int = 0o600) -> File:
        """Open for reading and writing. FileNotFoundError unless it exists or ``create``."""

    def create(self, path: Path, *, mode: int = 0o600) -> File:
        """A new, empty file. FileExistsError if there is anything of this name."""

    def read(self, path: Path) -> bytes: ...
    def exists(self, path: Path) -> bool: ...
    def names(self, path: Path) -> list[str]:
        """Sorted names in a folder; empty if there is no such folder."""

    def make_dir(self, path: Path, *, mode: int = 0o700) -> None:
        """With its parents; no error if it exists. The new names are durable on return."""

    def rename(self, source: Path, target: Path) -> None:
        """Atomic; durable after ``sync_dir`` of the target's folder."""

    def remove(self, path: Path) -> None:
        """No error if it is not there. Folders are removed with all they hold."""

    def sync_dir(self, path: Path) -> None: ...


def write_atomic(files: Files, path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data``: after a crash it holds the old bytes or the new ones, whole.

    For our own folders: what is called ``NAME.new`` beside it is removed. Elsewhere: `write_export`.
    """
    draft = path.with_name(path.name + ".new")
    files.remove(draft)
    file = files.open(draft, create=True, mode=mode)
    try:
        file.append(data)
        file.sync()
    finally:
        file.close()
    files.rename(draft, path)
    files.sync_dir(path.parent)


def write_export(files: Files, path: Path, data: bytes) -> None:
    """Put ``data`` where a person wants it, whole or not at all; nothing else in that folder is touched.

    Raises OSError. If the process is killed meanwhile, a draft stays beside it: ``NAME.1.new``.
    """
    draft, file = _new_draft(files, path)
    try:
        try:
            file.append(data)
            file.sync()
        finally:
            file.close()
        files.rename(draft, path)
    except BaseException:
        with suppress(OSError):
            files.remove(draft)
        raise
    files.sync_dir(path.parent)


def _new_draft(files: Files, path: Path) -> tuple[Path, File]:
    for number in range(1, DRAFTS_MAX + 1):
        draft = path.with_name(f"{path.name}.{number}.new")
        with suppress(FileExistsError):
            return draft, files.create(draft, mode=0o644)
    text = f"{DRAFTS_MAX} drafts ({path.name}.1.new, …) lie beside it already; delete them"
    raise FileExistsError(errno.EEXIST, text, str(path))


class Lock(Protocol):
    def hold(self, path: Path) -> AbstractContextManager[None]:
        """Hold the lock file until the context ends or the process dies. Raises `LockHeld`."""


class Offload(Protocol):
    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function outside the event loop (one thread pool, bounded)."""


class Process(Protocol):
    """A child that we talk to over its standard input and output."""

    @property
    def pid(self) -> int: ...

    async def write(self, data: bytes) -> None: ...
    async def read_exactly(self, size: int) -> bytes:
        """Raises EOFError when the child closed its output first."""

    def rss_bytes(self) -> int:
        """Resident memory of the child; 0 when it is gone or the platform does not tell."""

    def kill(self) -> None:
        """SIGKILL; no error if it is gone."""

    async def wait(self) -> int:
        """Exit status; negative for a signal."""


class Spawn(Protocol):
    async def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path | None = None
    ) -> Process:
        """Start a program with pipes; its standard error goes to the file ``stderr`` (appended) or ours."""


class Entropy(Protocol):
    def random_bytes(self, size: int) -> bytes:
        """From the system's secure source in production."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All six, handed down from the composition root."""

    clock: Clock
    files: Files
    lock: Lock
    offload: Offload
    spawn: Spawn
    entropy: Entropy
