"""The one append-only log: opaque entries, group commit, checksums, a hash chain.

`broker.journal_file` describes the file, and what a crash may do to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from broker.journal_file import (
    FEDERATION_BYTES,
    FRAME_BYTES_MAX,
    FRAME_ENTRIES_MAX,
    NAME,
    Frame,
    JournalDamaged,
    JournalError,
    JournalForeign,
    check_header,
    encode_frame,
    header,
    read_frames,
)
from broker.ports import File, Files, Offload, write_atomic
from broker.room import disk_full

__all__ = [
    "ENTRY_BYTES_MAX",
    "Entry",
    "Journal",
    "JournalDamaged",
    "JournalError",
    "JournalForeign",
    "JournalMissing",
    "JournalStopped",
    "Mark",
]

ENTRY_BYTES_MAX = FRAME_BYTES_MAX
PENDING_BYTES_MAX = 64 << 20
PENDING_ENTRIES_MAX = 64 << 10


class JournalMissing(JournalError):
    """There is no journal to read."""


class JournalStopped(JournalError):
    """The journal takes no more entries. Those not yet confirmed may or may not be found when reopened."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A durable entry: its number, from 1, and the chain hash (32 bytes) of the frame that holds it."""

    index: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as found; ``offset`` (bytes) is that of its frame in the file."""

    index: int
    data: bytes
    offset: int


@dataclass(slots=True)
class _Batch:
    entries: list[tuple[bytes, asyncio.Future[Mark]]]
    end: int = 0
    head: bytes | None = None
    """Set once the batch is durable."""


class Journal:
    """An open journal. The caller holds a lock if it writes; `append` queues, `run` commits."""

    @classmethod
    def open(cls, files: Files, directory: Path, federation: bytes, *, read_only: bool = False) -> Self:
        """Check the whole journal; create it if missing; cut a torn tail and make the rest durable.

        ``federation`` is its id, 16 bytes. ``read_only`` changes nothing, and may be used beside a
        writer. Raises `JournalDamaged`, `JournalForeign`, `JournalMissing` (``read_only``), OSError.
        """
        if len(federation) != FEDERATION_BYTES:
            raise ValueError(f"a federation id has {FEDERATION_BYTES} bytes, not {len(federation)}")
        path = directory / NAME
        if not files.exists(path):
            if read_only:
                raise JournalMissing(f"journal {path}: not found; check the state directory")
            files.make_dir(directory)
            write_atomic(files, path, header(federation))
        file = files.open(path)
        try:
            journal = cls(file, path, federation, read_only=read_only)
            if not read_only:
                # A killed predecessor may have written a frame or a name without syncing it.
                file.sync()
                files.sync_dir(directory)
        except BaseException:
            file.close()
            raise
        return journal

    def __init__(self, file: File, path: Path, federation: bytes, *, read_only: bool) -> None:
        """Not for use outside: see `open`."""
        self._file, self._path = file, path
        self._start = check_header(file, path, federation)
        self._head, self._end, self._count = self._start.head, self._start.end, 0
        size = file.size()
        for frame in self._frames(size):
            self._head, self._end = frame.head, frame.end
            self._count += len(frame.entries)
        self._cut_bytes = size - self._end
        if self._cut_bytes and not read_only:
            file.truncate(self._end)
        self._pending: deque[tuple[bytes, asyncio.Future[Mark]]] = deque()
        self._pending_bytes = 0
        self._work, self._settled = asyncio.Event(), asyncio.Event()
        self._running = False
        self._failure: OSError | None = None
        self._closed = "was opened for reading only" if read_only else ""

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def head(self) -> bytes:
        """Chain hash (32 bytes) of the last durable frame."""
        return self._head

    @property
    def count(self) -> int:
        """Durable entries."""
        return self._count

    @property
    def cut_bytes(self) -> int:
        """Size of the torn tail found at opening, and cut (``read_only``: ignored)."""
        return self._cut_bytes

    def entries(self) -> Iterator[Entry]:
        """The durable entries up to now, checked again; holds one frame in memory at a time."""
        index = 0
        for frame in self._frames(self._end):
            for data in frame.entries:
                index += 1
                yield Entry(index, data, frame.offset)

    def append(self, data: bytes, *, urgent: bool = True) -> asyncio.Future[Mark]:
        """Queue an entry; entries are numbered in the order of calls.

        The future resolves once the entry is durable, in the same order; cancelling it does not take
        the entry back. An entry that is not ``urgent`` costs no sync of its own: it goes with the next
        that is, or with `flush`. The future fails with `JournalStopped`. Await `room` before each append:
        the queue has no other bound. Raises `JournalStopped`; ValueError above ``ENTRY_BYTES_MAX``.
        """
        self._check_open()
        if len(data) > ENTRY_BYTES_MAX:
            raise ValueError(f"a journal entry has at most {ENTRY_BYTES_MAX} bytes, not {len(data)}")
        future: asyncio.Future[Mark] = asyncio.get_running_loop().create_future()
        self._pending.append((data, future))
        self._pending_bytes += len(data)
        if urgent:
            self._work.set()
        return future

    def flush(self) -> None:
        """Have everything committed that is pending, urgent or not."""
        if self._pending:
            self._work.set()

    async def room(self) -> None:
        """Wait until little enough is pending to append one more. Raises `JournalStopped`."""
        self._check_open()
        while self._pending_bytes >= PENDING_BYTES_MAX or len(self._pending) >= PENDING_ENTRIES_MAX:
            await self._settled.wait()
            self._check_open()

    async def drain(self) -> None:
        """Wait until all that is pending now is durable, while `run` runs. Raises `JournalStopped`."""
        self.flush()
        target = self._count + len(self._pending)
        while self._count < target:
            self._check_open()
            await self._settled.wait()

    async def run(self, offload: Offload) -> NoReturn:
        """Commit what is pending, until cancelled: one frame, one write and one sync at a time.

        Raises `JournalStopped` when the disk fails: the frame is cut off again if possible, and every
        pending future fails. ``offload`` must not return before its function, even if cancelled; it may run
        it again if the disk was full.
        """
        if self._running:
            raise RuntimeError(f"journal {self._path}: run() is already running")
        self._check_open()
        self._running = True
        try:
            while True:
                await self._work.wait()
                await self._commit_some(offload)
        finally:
            self._running = False

    async def _commit_some(self, offload: Offload) -> None:
        batch = self._next_batch()
        if len(batch.entries) == len(self._pending):
            self._work.clear()  # what comes from here on, and is urgent, sets it again
        try:
            await offload.run(self._commit, batch)
        except OSError as error:
            if disk_full(error):
                self._failure = error
            elif self._failure is None:
                raise
        finally:
            # Cancelled or not: what the disk says is what counts.
            self._settle(batch)
        if self._failure is not None:
            raise self._stopped() from self._failure

    def _next_batch(self) -> _Batch:
        entries: list[tuple[bytes, asyncio.Future[Mark]]] = []
        size = 0
        for data, future in self._pending:
            size += len(data)
            if entries and (size > FRAME_BYTES_MAX or len(entries) == FRAME_ENTRIES_MAX):
                break
            entries.append((data, future))
        return _Batch(entries)

    def _commit(self, batch: _Batch) -> None:
        """Write and sync a frame. In a thread: touches nothing that the event loop changes meanwhile."""
        frame, head = encode_frame(self._head, [data for data, _ in batch.entries])
        try:
            if self._file.size() > self._end:  # left by an earlier try, on a full disk
                self._file.truncate(self._end)
            self._file.append(frame)
            self._file.sync()
        except OSError as error:
            self._failure = None if disk_full(error) else error
            with suppress(OSError):
                self._file.truncate(self._end)
            raise
        batch.end, batch.head = self._end + len(frame), head

    def _settle(self, batch: _Batch) -> None:
        if batch.head is not None:
            self._head, self._end = batch.head, batch.end
            for data, future in batch.entries:
                self._pending.popleft()
                self._pending_bytes -= len(data)
                self._count += 1
                if not future.done():
                    future.set_result(Mark(self._count, self._head))
        if self._failure is not None:
            self._fail_pending()
        self._settled.set()
        self._settled = asyncio.Event()

    def close(self) -> None:
        """Close the file; what is still pending fails. Not while `run` runs. May be called twice."""
        if self._running:
            raise RuntimeError(f"journal {self._path}: cancel run() before close()")
        self._closed = self._closed or "was closed"
        self._file.close()
        self._fail_pending()
        self._settled.set()

    def _fail_pending(self) -> None:
        while self._pending:
            _, future = self._pending.popleft()
            if not future.done():
                error = self._stopped()
                error.__cause__ = self._failure
                future.set_exception(error)
                future.exception()  # seen: whoever does not wait for it learns from run()
        self._pending_bytes = 0

    def _check_open(self) -> None:
        if self._failure is not None or self._closed:
            raise self._stopped() from self._failure

    def _stopped(self) -> JournalStopped:
        disk = f"the disk failed ({self._failure}); free space or repair the disk, then start again"
        return JournalStopped(f"journal {self._path}: {disk if self._failure else self._closed}")

    def _frames(self, size: int) -> Iterator[Frame]:
        return read_frames(self._file, self._path, self._start, size)
