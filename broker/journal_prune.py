"""Let a journal begin later: whole segments at its beginning are given up.

First the new beginning is written down, durably; from then on the segments before it mean nothing, and
whoever opens the journal passes over them. So a crash at any point leaves a journal that opens, and a later
prune goes on where this one was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from broker.journal_file import JournalDamaged, encode_header, frame_start, read_frames, read_header
from broker.journal_segments import BEGIN, Segment, Segments, segment_name
from broker.ports import Files, write_atomic

_NAME = re.compile(r"[0-9]{8}\.fbj")


class Prunable:
    """The beginning of a journal. One at a time; a coordinator may write to its end meanwhile."""

    def __init__(self, files: Files, directory: Path, federation: bytes) -> None:
        """Raises `broker.journal_file.JournalError`, OSError."""
        self._files = files
        self._directory = directory
        self._federation = federation
        self._segments = Segments(files, directory, federation, 0)

    @property
    def first(self) -> int:
        """Index of the first entry that counts."""
        return self._segments.beginning.first

    def begins_later(self, index: int) -> bool:
        """Whether `begin_at` would give up anything."""
        return self._segment_of(index).header != self._segments.beginning

    def begin_at(self, index: int) -> None:
        """Let the journal begin with the segment that the entry ``index`` stands in, or will."""
        header = self._segment_of(index).header
        write_atomic(self._files, self._directory / BEGIN, encode_header(self._federation, header))
        self._segments = Segments(self._files, self._directory, self._federation, 0)

    def _segment_of(self, index: int) -> Segment:
        return [found for found in self._segments.all if found.header.first <= index][-1]

    def left(self) -> list[Path]:
        """The segments before the beginning that are still there, oldest first."""
        number = self._segments.beginning.number
        names = [name for name in self._files.names(self._directory) if _NAME.fullmatch(name)]
        return [self._directory / name for name in names if name < segment_name(number)]

    def entries(self) -> Iterator[bytes]:
        """What stands in `left`. Raises `JournalDamaged`."""
        for path in self.left():
            file = self._files.open(path)
            try:
                segment = Segment(path, read_header(file, path, self._federation))
                end, size = frame_start(segment.header).end, file.size()
                for frame in read_frames(file, path, frame_start(segment.header), size):
                    end = frame.end
                    yield from frame.entries
            finally:
                file.close()
            if end < size:
                raise JournalDamaged(path, end, "frame: only the last segment can end in a torn one")

    def remove(self) -> int:
        """Remove `left`, the oldest first; the bytes that this gave back."""
        freed = 0
        for path in self.left():
            file = self._files.open(path)
            try:
                freed += file.size()
            finally:
                file.close()
            self._files.remove(path)
        self._files.sync_dir(self._directory)
        return freed
