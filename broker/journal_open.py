"""Find a journal's segments as they should be, and mend what a crash may have left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broker.journal_file import FEDERATION_BYTES, JournalDamaged, JournalMissing
from broker.journal_segments import BEGIN, Mark, Segments
from broker.ports import Files


def open_segments(
    files: Files,
    directory: Path,
    federation: bytes,
    *,
    read_only: bool,
    marks: Sequence[Mark],
    segment_bytes: int,
) -> tuple[Segments, Mark | None]:
    """The segments, checked, and which of ``marks`` is true; see `broker.journal.Journal.open`."""
    if len(federation) != FEDERATION_BYTES:
        raise ValueError(f"a federation id has {FEDERATION_BYTES} bytes, not {len(federation)}")
    while True:
        begin = begun(files, directory)
        try:
            segments = Segments(files, directory, federation, segment_bytes)
            if not len(segments) and not begin:
                if read_only:
                    raise JournalMissing(f"journal {directory}: not found; check the state directory")
                segments.create()
            since = segments.check(marks)
            break
        except (JournalDamaged, FileNotFoundError):
            if begun(files, directory) == begin:
                raise
            # It was pruned just now, and we looked at what is gone.
    try:
        if not read_only:
            segments.cut()
    except BaseException:
        segments.close()
        raise
    return segments, since


def begun(files: Files, directory: Path) -> bytes:
    """Where the journal begins, to compare: another value later says that it was pruned meanwhile."""
    path = directory / BEGIN
    return files.read(path) if files.exists(path) else b""
