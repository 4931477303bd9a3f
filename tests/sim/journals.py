"""Journals on a simulated disk: what the tests of the journal share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from hypothesis import strategies as st

from broker.journal import Entry, Journal, Mark
from broker.journal_file import Header, encode_header, genesis
from broker.journal_segments import SEGMENT_BYTES
from broker.ports import Files
from tests.sim.machine import SimFiles, SimOffload
from tests.sim.virtual_loop import run

HERE = Path("/state/journal")
FEDERATION = bytes(range(16))
Groups = list[list[bytes]]
GROUPS = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=5)


def read_entries(files: Files, directory: Path, federation: bytes) -> Iterator[Entry]:
    """The entries of a journal, which is closed at the end."""
    journal = Journal.open(files, directory, federation, read_only=True)
    try:
        yield from journal.entries()
    finally:
        journal.close()


def open_journal(
    files: SimFiles,
    *,
    read_only: bool = False,
    marks: Sequence[Mark] = (),
    segment_bytes: int = SEGMENT_BYTES,
) -> Journal:
    return Journal.open(
        files, HERE, FEDERATION, read_only=read_only, marks=marks, segment_bytes=segment_bytes
    )


def committing(journal: Journal, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` on a virtual clock while the journal commits."""

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            committer = group.create_task(journal.run(SimOffload()), name="journal")
            await work()
            committer.cancel()

    run(both)


def write(
    files: SimFiles, groups: Sequence[Sequence[bytes]], *, segment_bytes: int = SEGMENT_BYTES
) -> list[Mark]:
    """Append each group in a frame of its own."""
    journal = open_journal(files, segment_bytes=segment_bytes)
    marks: list[Mark] = []

    async def work() -> None:
        for group in groups:
            futures = [journal.append(data) for data in group]
            await journal.drain()
            marks.extend([future.result() for future in futures])

    committing(journal, work)
    journal.close()
    return marks


def raw(files: SimFiles, number: int = 1) -> bytes:
    return files.read(HERE / f"{number:08d}.fbj")


def overwrite(files: SimFiles, data: bytes, number: int = 1) -> None:
    file = files.open(HERE / f"{number:08d}.fbj", create=True)
    file.truncate(0)
    file.append(data)
    file.close()


def found(files: SimFiles) -> list[bytes]:
    return [entry.data for entry in read_entries(files, HERE, FEDERATION)]


def frames_of(groups: Groups) -> list[bytes]:
    """The file's pieces: its header, then each frame."""
    files = SimFiles()
    header = encode_header(FEDERATION, Header(1, 1, genesis(FEDERATION)))
    pieces, before = [header], len(header)
    for count in range(1, len(groups) + 1):
        files = SimFiles()
        write(files, groups[:count])
        pieces.append(raw(files)[before:])
        before = len(raw(files))
    return pieces
