"""The files of one journal, read as one chain: segments ``00000001.fbj``, ``00000002.fbj``, … in one folder.

A segment that exceeds its bound is followed by the next before another frame is written. The new one is there
whole (header synced, renamed, folder synced) before anything is appended to it, and nothing is ever appended
to an earlier one again: so only the last segment can have a torn tail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from broker.journal_file import (
    HEADER_BYTES,
    Frame,
    Header,
    JournalDamaged,
    encode_frame,
    encode_header,
    frame_start,
    genesis,
    read_frames,
    read_header,
)
from broker.ports import File, Files, write_atomic

SEGMENT_BYTES: Final = 64 << 20
"""A segment that has as much gets no further frame."""
_NAME = re.compile(r"([0-9]{8})\.fbj")


MISSING: Final = "segment: it is missing"
BEGIN: Final = "begin"
"""A copy of the header of the segment that the journal begins with, once earlier ones were pruned."""


def segment_name(number: int) -> str:
    """Of the file, from 1."""
    return f"{number:08d}.fbj"


class Mark(msgspec.Struct, frozen=True):
    """A durable entry: its number, from 1, and the chain hash (32 bytes) of the frame that holds it."""

    index: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of the journal."""

    path: Path
    header: Header


class Place(NamedTuple):
    """A frame as found: in which segment, and the index of its first entry."""

    segment: Segment
    first: int
    frame: Frame

    @property
    def last(self) -> int:
        """Index of its last entry."""
        return self.first + len(self.frame.entries) - 1


class Tail(msgspec.Struct, frozen=True):
    """The durable end of the journal: ``end`` (bytes) in the last segment, the chain there, the entries."""

    segment: Segment
    file: File
    end: int
    head: bytes
    count: int


class Segments:
    """Reads the chain, and writes behind it. `write` may run in a thread; all else belongs to one task."""

    def __init__(self, files: Files, directory: Path, federation: bytes, bytes_max: int) -> None:
        self._files = files
        self._directory = directory
        self._federation = federation
        self._bytes_max = bytes_max
        begin = directory / BEGIN
        self.beginning = self._header(begin) if files.exists(begin) else Header(1, 1, genesis(federation))
        self._segments = [Segment(path, self._header(path)) for path in self._paths()]
        self._begun: Tail | None = None  # a new segment that has no frame yet
        self.tail: Tail
        self._marked: Place | None = None  # a frame that `check` found: a snapshot is of an entry in it
        self.cut_bytes = 0

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def all(self) -> Sequence[Segment]:
        """The segments, oldest first."""
        return self._segments

    def create(self) -> None:
        """Make the first segment."""
        self._files.make_dir(self._directory)
        self._segments = [self._new(self.beginning)]

    def check(self, marks: Sequence[Mark]) -> Mark | None:
        """Find the end, checking the chain up to it; to be called once, before anything below.

        From the segment on that holds the first of ``marks`` which is true (it is returned); without one,
        from the beginning. Raises `JournalDamaged`.
        """
        self._check_headers()
        file = self._files.open(self._segments[-1].path)
        try:
            for mark in marks:
                begin = self._from(mark.index + 1)
                if begin and self._check_from(begin, file, mark):
                    return mark
            self._check_from(self._segments, file, None)
        except BaseException:
            file.close()
            raise
        return None

    def _check_from(self, segments: Sequence[Segment], file: File, mark: Mark | None) -> bool:
        """Set the tail; whether ``mark`` is true. ``file`` is the last segment."""
        size = file.size()
        head, count = segments[0].header.head, segments[0].header.first - 1
        found = mark == Mark(count, head)
        last, end = segments[-1], HEADER_BYTES
        for place in self._chain(segments, size):
            head, count = place.frame.head, place.last
            end = place.frame.end if place.segment is last else HEADER_BYTES
            if mark is not None and place.first <= mark.index <= place.last:
                found, self._marked = place.frame.head == mark.head, place
        self.tail = Tail(last, file, end, head, count)
        self.cut_bytes = size - end
        return found

    def _from(self, index: int) -> Sequence[Segment]:
        """The segments from the one on that may hold the entry ``index``."""
        earlier = sum(segment.header.first <= index for segment in self._segments)
        return self._segments[earlier - 1 :] if earlier else []

    def cut(self) -> None:
        """Remove a torn tail, and make durable what a killed predecessor may have left unsynced."""
        if self.cut_bytes:
            self.tail.file.truncate(self.tail.end)
        self.tail.file.sync()
        self._files.sync_dir(self._directory)

    def frames(self, after: int = 0) -> Iterator[Place]:
        """The frames up to the tail, from the one on that holds the entry behind ``after``; checked again."""
        segments, behind = self._from(after + 1) or self._segments, self._marked
        if behind is None or behind.segment is not segments[0] or behind.last > after:
            behind = None
        for place in self._chain(segments, self.tail.end, behind):
            if place.last > after:
                yield place

    def _chain(self, segments: Sequence[Segment], size: int, behind: Place | None = None) -> Iterator[Place]:
        """Frames across ``segments``; the last of them is read up to ``size`` bytes, and may be torn. With
        ``behind``, a frame of the first of them, from the one after it on."""
        for segment, following in zip(segments, [*segments[1:], None], strict=True):
            # A file of its own: `advance` closes the other one.
            file = self._files.open(segment.path)
            start = behind if behind and behind.segment is segment else _start(segment)
            try:
                if following is None:
                    yield from _places(start, read_frames(file, segment.path, start.frame, size))
                else:
                    yield from _whole(start, file, following)
            finally:
                file.close()

    def write(self, entries: list[bytes]) -> Tail:
        """Append a frame, in a new segment if the last one is full; durable on return.

        What is returned counts once it is given to `advance`. After an OSError it may be called again.
        """
        tail = self._begun or self.tail
        if tail.end >= self._bytes_max and tail.end > HEADER_BYTES:
            tail = self._begun = self._rotate(tail)
        frame, head = encode_frame(tail.head, entries)
        try:
            if tail.file.size() > tail.end:  # left by an earlier try, on a full disk
                tail.file.truncate(tail.end)
            tail.file.append(frame)
            tail.file.sync()
        except OSError:
            with suppress(OSError):
                tail.file.truncate(tail.end)
            raise
        return Tail(tail.segment, tail.file, tail.end + len(frame), head, tail.count + len(entries))

    def _rotate(self, tail: Tail) -> Tail:
        header = Header(tail.segment.header.number + 1, tail.count + 1, tail.head)
        segment = self._new(header)
        return Tail(segment, self._files.open(segment.path), HEADER_BYTES, tail.head, tail.count)

    def _new(self, header: Header) -> Segment:
        path = self._directory / segment_name(header.number)
        write_atomic(self._files, path, encode_header(self._federation, header))
        return Segment(path, header)

    def advance(self, tail: Tail) -> None:
        """The journal ends at ``tail`` from now on."""
        if tail.segment is not self.tail.segment:
            self.tail.file.close()
            self._segments = [*self._segments, tail.segment]
        self.tail, self._begun = tail, None

    def close(self) -> None:
        """May be called twice."""
        self.tail.file.close()
        if self._begun is not None:
            self._begun.file.close()

    def _paths(self) -> list[Path]:
        """Those that count: what lies before the beginning was left by a crash of `broker.journal_prune`."""
        names = [name for name in self._files.names(self._directory) if _NAME.fullmatch(name)]
        return [self._directory / name for name in names if int(name[:8]) >= self.beginning.number]

    def _header(self, path: Path) -> Header:
        file = self._files.open(path)
        try:
            return read_header(file, path, self._federation)
        finally:
            file.close()

    def _check_headers(self) -> None:
        """Every segment is there, once, in its place."""
        if not self._segments:
            raise JournalDamaged(self._directory / segment_name(self.beginning.number), 0, MISSING)
        for number, segment in enumerate(self._segments, self.beginning.number):
            path, header = segment.path, segment.header
            if path.name != segment_name(number):
                raise JournalDamaged(path.with_name(segment_name(number)), 0, MISSING)
            if header.number != number:
                raise JournalDamaged(path, 0, f"number of the segment: {header.number}")
        first = self._segments[0]
        if first.header != self.beginning:
            raise JournalDamaged(first.path, 0, "beginning of the chain")


def _start(segment: Segment) -> Place:
    """The place before a segment's first frame."""
    return Place(segment, segment.header.first, frame_start(segment.header))


def _whole(start: Place, file: File, following: Segment) -> Iterator[Place]:
    """The rest of a segment that others follow: it ends where the next one begins, and is not torn."""
    size, segment = file.size(), start.segment
    end, head, count = start.frame.end, start.frame.head, start.last
    for place in _places(start, read_frames(file, segment.path, start.frame, size)):
        end, head, count = place.frame.end, place.frame.head, place.last
        yield place
    if end < size:
        raise JournalDamaged(segment.path, end, "frame: only the last segment can end in a torn one")
    if count < following.header.first - 1:
        raise JournalDamaged(segment.path, end, f"end: entry {count + 1} is missing")
    if (count + 1, head) != (following.header.first, following.header.head):
        raise JournalDamaged(following.path, 0, "chain: it does not continue the segment before")


def _places(start: Place, frames: Iterator[Frame]) -> Iterator[Place]:
    """Where these frames are, which follow on ``start``."""
    segment, first = start.segment, start.last + 1
    for frame in frames:
        yield Place(segment, first, frame)
        first += len(frame.entries)
