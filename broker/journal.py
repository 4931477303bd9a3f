"""The one append-only log: opaque entries, group commit, checksums, a hash chain.

`broker.journal_file` has the format, and what a crash may do to it; `broker.journal_segments` the files.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import msgspec

from broker.journal_file import (
    FRAME_BYTES_MAX,
    FRAME_ENTRIES_MAX,
    JournalDamaged,
    JournalError,
    JournalForeign,
    JournalMissing,
)
from broker.journal_open import open_segments
from broker.journal_segments import SEGMENT_BYTES, Mark, Segments, Tail
from broker.ports import Files, Offload
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


class JournalStopped(JournalError):
    """The journal takes no more entries. Those not yet confirmed may or may not be found when reopened."""


class Entry(msgspec.Struct, frozen=True):
    """An entry as found: ``offset`` (bytes) is that of its frame in the file ``path``, ``head`` the frame's
    chain hash."""

    index: int
    data: bytes
    offset: int
    path: Path
    head: bytes


@dataclass(slots=True)
class _Batch:
    entries: list[tuple[bytes, asyncio.Future[Mark]]]
    tail: Tail | None = None
    """Set once the batch is durable."""


class Journal:
    """An open journal. The caller holds a lock if it writes; `append` queues, `run` commits."""

    @classmethod
    def open(
        cls,
        files: Files,
        directory: Path,
        federation: bytes,
        *,
        read_only: bool = False,
        marks: Sequence[Mark] = (),
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Self:
        """Check the journal; create it if missing; cut a torn tail and make the rest durable.

        ``federation`` is its id, 16 bytes. ``read_only`` changes nothing, and may be used beside a
        writer. All of it is checked, or with ``marks`` (newest first) what lies in the segment of the first
        true one and behind: see `since`. A segment of ``segment_bytes`` is followed by the next.
        Raises `JournalDamaged`, `JournalForeign`, `JournalMissing` (``read_only``), OSError.
        """
        segments, since = open_segments(
            files, directory, federation, read_only=read_only, marks=marks, segment_bytes=segment_bytes
        )
        return cls(segments, since, read_only=read_only)

    def __init__(self, segments: Segments, since: Mark | None, *, read_only: bool) -> None:
        """Not for use outside: see `open`."""
        self._segments = segments
        self._since = since
        self._cut_bytes = segments.cut_bytes
        self._pending: deque[tuple[bytes, asyncio.Future[Mark]]] = deque()
        self._pending_bytes = 0
        self._work, self._settled = asyncio.Event(), asyncio.Event()
        self._running = False
        self._failure: OSError | None = None
        self._closed = "was opened for reading only" if read_only else ""

    @property
    def path(self) -> Path:
        """The file that is written to."""
        return self._segments.tail.segment.path

    @property
    def end(self) -> int:
        """Where the last durable frame ends in `path`, in bytes."""
        return self._segments.tail.end

    @property
    def before(self) -> Mark:
        """What the first entry that is there follows on: index 0, or a later entry, which was pruned."""
        return Mark(self._segments.beginning.first - 1, self._segments.beginning.head)

    @property
    def segments(self) -> Sequence[Path]:
        """The files, oldest first."""
        return [segment.path for segment in self._segments.all]

    @property
    def since(self) -> Mark | None:
        """Which of the marks given to `open` is true: what lies before its segment was not checked."""
        return self._since

    @property
    def head(self) -> bytes:
        """Chain hash (32 bytes) of the last durable frame."""
        return self._segments.tail.head

    @property
    def count(self) -> int:
        """Durable entries."""
        return self._segments.tail.count

    @property
    def cut_bytes(self) -> int:
        """Size of the torn tail found at opening, and cut (``read_only``: ignored)."""
        return self._cut_bytes

    @property
    def queued(self) -> int:
        """The index of the entry that was appended last, durable or not."""
        return self.count + len(self._pending)

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """The durable entries up to now, behind the one with index ``after``; checked again, one frame in
        memory at a time. Raises `JournalDamaged`."""
        for place in self._segments.frames(after):
            frame, path = place.frame, place.segment.path
            for index, data in enumerate(frame.entries, place.first):
                if index > after:
                    yield Entry(index, data, frame.offset, path, frame.head)

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
        target = self.queued
        while self.count < target:
            self._check_open()
            await self._settled.wait()

    async def run(self, offload: Offload) -> NoReturn:
        """Commit what is pending, until cancelled: one frame, one write and one sync at a time.

        Raises `JournalStopped` when the disk fails: the frame is cut off again if possible, and every
        pending future fails. ``offload`` must not return before its function, even if cancelled; it may run
        it again if the disk was full.
        """
        if self._running:
            raise RuntimeError(f"journal {self.path}: run() is already running")
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
        if not batch.entries:
            return  # what was flushed while the frame before was written went with that one
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
        try:
            batch.tail = self._segments.write([data for data, _ in batch.entries])
        except OSError as error:
            self._failure = None if disk_full(error) else error
            raise

    def _settle(self, batch: _Batch) -> None:
        if batch.tail is not None:
            index, head = self.count, batch.tail.head
            self._segments.advance(batch.tail)
            for data, future in batch.entries:
                self._pending.popleft()
                self._pending_bytes -= len(data)
                index += 1
                if not future.done():
                    future.set_result(Mark(index, head))
        if self._failure is not None:
            self._fail_pending()
        self._settled.set()
        self._settled = asyncio.Event()

    def close(self) -> None:
        """Close the file; what is still pending fails. Not while `run` runs. May be called twice."""
        if self._running:
            raise RuntimeError(f"journal {self.path}: cancel run() before close()")
        self._closed = self._closed or "was closed"
        self._segments.close()
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
        return JournalStopped(f"journal {self.path}: {disk if self._failure else self._closed}")
