"""What a journal gives back, what it cuts and what it refuses."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.journal import Journal, JournalDamaged, JournalError, JournalForeign, JournalMissing, Mark
from broker.journal_file import encode_frame
from broker.system import system_ports
from tests.sim.journals import (
    FEDERATION,
    GROUPS,
    HERE,
    Groups,
    found,
    frames_of,
    open_journal,
    overwrite,
    raw,
    read_entries,
    write,
)
from tests.sim.machine import SimFiles, SimOffload
from tests.sim.virtual_loop import run

P = ParamSpec("P")
R = TypeVar("R")


@given(GROUPS, GROUPS)
def test_what_was_appended_is_read_back_in_order_across_reopenings(first: Groups, second: Groups) -> None:
    files = SimFiles()
    marks = write(files, first) + write(files, second)
    entries = list(read_entries(files, HERE, FEDERATION))
    assert [entry.data for entry in entries] == [data for group in first + second for data in group]
    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
    assert [mark.index for mark in marks] == list(range(1, len(entries) + 1))
    journal = open_journal(files)
    assert (journal.count, journal.head, journal.cut_bytes) == (len(entries), marks[-1].head, 0)
    journal.close()


@given(GROUPS, st.binary(max_size=30))
@settings(max_examples=20)
def test_a_last_frame_cut_at_any_byte_leaves_the_earlier_ones(groups: Groups, more: bytes) -> None:
    pieces = frames_of(groups)
    kept = [data for group in groups[:-1] for data in group]
    whole = b"".join(pieces[:-1])
    for length in range(len(pieces[-1])):
        files = SimFiles()
        write(files, [])
        overwrite(files, whole + pieces[-1][:length])
        assert found(files) == kept
        assert len(raw(files)) == len(whole) + length  # reading changes nothing
        journal = open_journal(files)
        assert journal.cut_bytes == length
        journal.close()
        assert raw(files) == whole
        if length % 7 == 0:
            write(files, [[more]])
            assert found(files) == [*kept, more]


@given(GROUPS, st.data())
def test_a_flipped_byte_before_the_last_frame_is_refused_with_file_and_offset(
    groups: Groups, data: st.DataObject
) -> None:
    pieces = frames_of([*groups, [b"last"]])
    whole = bytearray(b"".join(pieces))
    position = data.draw(st.integers(0, len(whole) - len(pieces[-1]) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    starts = [sum(map(len, pieces[:count])) for count in range(len(pieces))]
    files = SimFiles()
    write(files, [])
    overwrite(files, bytes(whole))
    for read_only in (True, False):
        with pytest.raises(JournalDamaged, match=f"{HERE}/00000001.fbj: damaged at byte") as caught:
            open_journal(files, read_only=read_only)
        assert caught.value.offset == max(start for start in starts if start <= position)
    assert raw(files) == whole


@given(GROUPS, st.data())
def test_a_flipped_byte_in_the_last_frame_never_gives_a_wrong_entry(
    groups: Groups, data: st.DataObject
) -> None:
    pieces = frames_of(groups)
    whole = bytearray(b"".join(pieces))
    whole[data.draw(st.integers(len(whole) - len(pieces[-1]), len(whole) - 1))] ^= data.draw(
        st.integers(1, 255)
    )
    files = SimFiles()
    write(files, [])
    overwrite(files, bytes(whole))
    with suppress(JournalDamaged):
        assert found(files) == [data for group in groups[:-1] for data in group]


@given(st.lists(st.binary(max_size=20), min_size=3, max_size=6, unique=True), st.data())
def test_removed_and_swapped_frames_are_refused(entries: list[bytes], data: st.DataObject) -> None:
    pieces = frames_of([[entry] for entry in entries])
    one = data.draw(st.integers(1, len(pieces) - 2))
    other = data.draw(st.integers(one + 1, len(pieces) - 1))
    swapped = list(pieces)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    for doctored in (pieces[:one] + pieces[one + 1 :], swapped):
        files = SimFiles()
        write(files, [])
        overwrite(files, b"".join(doctored))
        with pytest.raises(JournalDamaged, match="chain") as caught:
            open_journal(files)
        assert caught.value.offset == sum(map(len, pieces[:one]))


def test_a_frame_of_another_history_is_refused_even_at_the_end() -> None:
    files = SimFiles()
    write(files, [[b"a"]])
    frame, _ = encode_frame(bytes(32), [b"doctored"])
    overwrite(files, raw(files) + frame)
    with pytest.raises(JournalDamaged, match="chain"):
        open_journal(files)


@given(GROUPS, st.integers(0, 200), st.integers(1, 100_000))
def test_a_tail_of_zeros_is_cut_after_whole_and_after_torn_frames(
    groups: Groups, torn: int, zeros: int
) -> None:
    pieces = frames_of([*groups, [b"x" * 100]])
    whole = b"".join(pieces[:-1])
    torn = min(torn, len(pieces[-1]) - 1)
    files = SimFiles()
    write(files, [])
    overwrite(files, whole + pieces[-1][:torn] + bytes(zeros))
    journal = open_journal(files)
    assert journal.cut_bytes == torn + zeros
    journal.close()
    assert raw(files) == whole
    assert found(files) == [data for group in groups for data in group]


def test_another_federation_and_an_unknown_format_are_refused() -> None:
    files = SimFiles()
    write(files, [[b"a"]])
    with pytest.raises(JournalForeign, match=f"{FEDERATION.hex()}, not {b'other federation'.hex()}"):
        Journal.open(files, HERE, b"other federation")
    with pytest.raises(JournalMissing, match="not found"):
        next(read_entries(files, Path("/elsewhere"), FEDERATION))
    assert not files.exists(Path("/elsewhere"))
    newer = bytearray(raw(files))
    newer[4] = 3
    overwrite(files, bytes(newer))
    with pytest.raises(JournalDamaged, match="header"):
        open_journal(files)
    newer[68:72] = zlib.crc32(newer[:68]).to_bytes(4, "little")
    overwrite(files, bytes(newer))
    with pytest.raises(JournalError, match="format 3 is unknown here"):
        open_journal(files)
    first = struct.pack("<4sI16s", b"FBJ1", 1, FEDERATION)
    overwrite(files, first + zlib.crc32(first).to_bytes(4, "little") + b"frames")
    with pytest.raises(JournalError, match=r"00000001.fbj: has format 1.* begin with a new state directory"):
        open_journal(files)
    overwrite(files, raw(files)[:10])
    with pytest.raises(JournalDamaged, match="header"):
        open_journal(files)


async def test_on_a_real_disk_entries_survive_reopening(tmp_path: Path) -> None:
    ports = system_ports()
    for life in range(3):
        journal = Journal.open(ports.files, tmp_path / "journal", FEDERATION)
        assert journal.count == 50 * life
        async with asyncio.TaskGroup() as group:
            committer = group.create_task(journal.run(ports.offload), name="journal")
            futures = [journal.append(b"%d" % number) for number in range(50)]
            await journal.drain()
            committer.cancel()
        assert futures[-1].result() == Mark(journal.count, journal.head)
        journal.close()
    assert [entry.data for entry in read_entries(ports.files, tmp_path / "journal", FEDERATION)] == [
        b"%d" % number for _ in range(3) for number in range(50)
    ]


def test_a_flush_while_a_frame_is_written_makes_no_frame_without_entries() -> None:
    files = SimFiles()
    journal = open_journal(files)
    written: list[int] = []

    class Flushing(SimOffload):
        """Somebody flushes while the disk is busy."""

        async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
            journal.flush()
            done = await super().run(function, *args, **kwargs)
            written.append(journal.count)
            return done

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            committer = group.create_task(journal.run(Flushing()), name="journal")
            mark = await journal.append(b"one")
            await asyncio.sleep(0.1)  # of a virtual clock: whatever is to be written, is
            assert (journal.count, journal.head) == (mark.index, mark.head)
            committer.cancel()

    run(both)
    assert written == [0]  # once, and what was written counts since then
