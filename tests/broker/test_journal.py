"""The journal, on a simulated disk: what is read back, what is cut, what is refused, what a crash leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.journal import (
    ENTRY_BYTES_MAX,
    PENDING_BYTES_MAX,
    PENDING_ENTRIES_MAX,
    Journal,
    JournalDamaged,
    JournalError,
    JournalForeign,
    JournalMissing,
    JournalStopped,
    Mark,
    read_entries,
)
from broker.journal_file import FRAME_ENTRIES_MAX, encode_frame, header
from broker.system import system_ports
from tests.sim.machine import SimFiles, SimOffload
from tests.sim.virtual_loop import run

HERE = Path("/state/journal")
FEDERATION = bytes(range(16))
Groups = list[list[bytes]]
groups_of_entries = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=5)


def open_journal(files: SimFiles, *, read_only: bool = False) -> Journal:
    return Journal.open(files, HERE, FEDERATION, read_only=read_only)


def committing(journal: Journal, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` on a virtual clock while the journal commits."""

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            committer = group.create_task(journal.run(SimOffload()), name="journal")
            await work()
            committer.cancel()

    run(both)


def write(files: SimFiles, groups: Sequence[Sequence[bytes]]) -> list[Mark]:
    """Append each group in a frame of its own."""
    journal = open_journal(files)
    marks: list[Mark] = []

    async def work() -> None:
        for group in groups:
            futures = [journal.append(data) for data in group]
            await journal.drain()
            marks.extend([future.result() for future in futures])

    committing(journal, work)
    journal.close()
    return marks


def raw(files: SimFiles) -> bytes:
    return files.read(HERE / "00000001.fbj")


def overwrite(files: SimFiles, data: bytes) -> None:
    file = files.open(HERE / "00000001.fbj")
    file.truncate(0)
    file.append(data)
    file.close()


def found(files: SimFiles) -> list[bytes]:
    return [entry.data for entry in read_entries(files, HERE, FEDERATION)]


def frames_of(groups: Groups) -> list[bytes]:
    """The file's pieces: its header, then each frame."""
    files = SimFiles()
    pieces, before = [header(FEDERATION)], len(header(FEDERATION))
    for count in range(1, len(groups) + 1):
        files = SimFiles()
        write(files, groups[:count])
        pieces.append(raw(files)[before:])
        before = len(raw(files))
    return pieces


@given(groups_of_entries, groups_of_entries)
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


@given(groups_of_entries, st.binary(max_size=30))
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


@given(groups_of_entries, st.data())
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


@given(groups_of_entries, st.data())
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


@given(groups_of_entries, st.integers(0, 200), st.integers(1, 100_000))
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


def test_appends_of_one_moment_share_a_frame_up_to_its_bounds() -> None:
    files = SimFiles()
    syncs = 0

    def count(what: str, path: Path) -> None:
        nonlocal syncs
        syncs += what == "sync"

    journal = open_journal(files)
    files.on_change = count

    async def work() -> None:
        futures = [journal.append(b"%d" % number) for number in range(2 * FRAME_ENTRIES_MAX + 1)]
        await futures[-1]
        assert syncs == 3
        large = [journal.append(bytes(ENTRY_BYTES_MAX // 2)) for _ in range(4)]
        await large[-1]
        assert syncs == 5
        assert large[0].result().head == large[1].result().head != large[2].result().head

    committing(journal, work)
    assert len({entry.offset for entry in journal.entries()}) == 5


def test_futures_resolve_in_the_order_of_appends_and_only_after_the_sync() -> None:
    files = SimFiles()
    journal = open_journal(files)
    order: list[int] = []
    rng = random.Random(1)

    async def work() -> None:
        futures = []
        for number in range(300):
            future = journal.append(rng.randbytes(rng.randint(0, 50)))
            future.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
            futures.append(future)
            if rng.random() < 0.2:
                await asyncio.sleep(0)
        await journal.drain()
        await asyncio.sleep(0)
        assert [future.result().index for future in futures] == list(range(1, 301))

    committing(journal, work)
    assert order == list(range(300))


def test_a_waiter_that_gives_up_neither_takes_its_entry_back_nor_disturbs_the_next() -> None:
    files = SimFiles()
    journal = open_journal(files)

    async def work() -> None:
        journal.append(b"a").cancel()
        assert (await journal.append(b"b")).index == 2

    committing(journal, work)
    assert found(files) == [b"a", b"b"]


@pytest.mark.parametrize("broken", ["append", "sync"])
def test_a_failing_disk_fails_what_is_pending_and_nothing_later_is_resolved(broken: str) -> None:
    files = SimFiles()
    journal = open_journal(files)

    def fail(what: str, path: Path) -> None:
        if what == broken:
            raise OSError(28, "No space left on device")

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(journal.run(SimOffload()), name="journal")
            await journal.append(b"kept")
            files.on_change = fail
            lost = [journal.append(b"lost") for _ in range(2000)]
            with pytest.raises(
                JournalStopped, match=r"00000001.fbj: the disk failed .*No space.*; free space"
            ):
                await lost[0]
            for future in lost:
                assert isinstance(future.exception(), JournalStopped)
            files.on_change = None
            with pytest.raises(JournalStopped):
                journal.append(b"later")
            with pytest.raises(JournalStopped):
                await journal.room()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario)
    (error,) = caught.value.exceptions
    assert isinstance(error, JournalStopped)
    assert isinstance(error.__cause__, OSError)
    assert found(files) == [b"kept"]
    assert open_journal(files).cut_bytes == 0  # the torn frame was taken back


def test_room_is_given_only_below_the_bounds_and_drain_waits_for_all() -> None:
    files = SimFiles()
    journal = open_journal(files)

    async def fill(size: int, number: int) -> None:
        for _ in range(number):
            await asyncio.wait_for(journal.room(), 1)
            journal.append(bytes(size))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(journal.room(), 1)
        async with asyncio.TaskGroup() as group:
            committer = group.create_task(journal.run(SimOffload()), name="journal")
            await asyncio.wait_for(journal.room(), 1)
            await journal.drain()
            committer.cancel()

    run(lambda: fill(ENTRY_BYTES_MAX, PENDING_BYTES_MAX // ENTRY_BYTES_MAX))
    run(lambda: fill(0, PENDING_ENTRIES_MAX))
    assert journal.count == PENDING_BYTES_MAX // ENTRY_BYTES_MAX + PENDING_ENTRIES_MAX


def test_entries_and_names_out_of_bounds_are_refused() -> None:
    files = SimFiles()
    journal = open_journal(files)

    async def work() -> None:
        with pytest.raises(ValueError, match=f"at most {ENTRY_BYTES_MAX} bytes, not {ENTRY_BYTES_MAX + 1}"):
            journal.append(bytes(ENTRY_BYTES_MAX + 1))
        with pytest.raises(RuntimeError, match="already running"):
            await journal.run(SimOffload())
        with pytest.raises(RuntimeError, match=r"cancel run\(\)"):
            journal.close()
        await journal.append(bytes(ENTRY_BYTES_MAX))

    committing(journal, work)
    assert len(found(files)[0]) == ENTRY_BYTES_MAX
    with pytest.raises(ValueError, match="16 bytes"):
        Journal.open(files, HERE, b"short")


def test_another_federation_and_an_unknown_format_are_refused() -> None:
    files = SimFiles()
    write(files, [[b"a"]])
    with pytest.raises(JournalForeign, match=f"{FEDERATION.hex()}, not {b'other federation'.hex()}"):
        Journal.open(files, HERE, b"other federation")
    with pytest.raises(JournalMissing, match="not found"):
        next(read_entries(files, Path("/elsewhere"), FEDERATION))
    assert not files.exists(Path("/elsewhere"))
    newer = bytearray(raw(files))
    newer[4] = 2
    overwrite(files, bytes(newer))
    with pytest.raises(JournalDamaged, match="header"):
        open_journal(files)
    overwrite(files, raw(files)[:10])
    with pytest.raises(JournalDamaged, match="header"):
        open_journal(files)


def test_a_closed_or_read_only_journal_takes_nothing_and_pending_entries_fail() -> None:
    files = SimFiles()
    journal = open_journal(files)

    async def scenario() -> None:
        future = journal.append(b"a")
        journal.close()
        journal.close()
        with pytest.raises(JournalStopped, match="was closed"):
            await future
        with pytest.raises(JournalStopped, match="reading only"):
            open_journal(files, read_only=True).append(b"a")

    run(scenario)
    assert found(files) == []


class Cut(BaseException):
    """The power is gone."""


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_a_power_cut_at_any_change_of_the_disk_loses_no_resolved_entry(seed: int) -> None:
    rng = random.Random(seed)
    files = SimFiles()
    confirmed: dict[int, bytes] = {}
    appended: list[bytes] = []
    for _ in range(rng.randint(1, 4)):
        left = rng.randint(1, 14)

        def maybe_cut(what: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                files.crash(rng)
                raise Cut

        files.on_change = maybe_cut
        with suppress(Cut, BaseExceptionGroup):
            one_life(files, rng, confirmed, appended)
        files.on_change = None
        files.restart()
    journal = open_journal(files)
    entries = [entry.data for entry in journal.entries()]
    assert all(entries[index - 1] == data for index, data in confirmed.items())
    assert journal.count == len(entries)
    remaining = iter(appended)  # a subsequence, in order: nothing doubled, nothing invented
    assert all(data in remaining for data in entries)


def one_life(files: SimFiles, rng: random.Random, confirmed: dict[int, bytes], appended: list[bytes]) -> None:
    journal = open_journal(files)

    async def work() -> None:
        for _ in range(rng.randint(1, 6)):
            futures = []
            for _ in range(rng.randint(1, 3)):
                appended.append(b"%d:" % len(appended) + rng.randbytes(rng.randint(0, 60)))
                futures.append((appended[-1], journal.append(appended[-1])))
            for data, future in futures:
                confirmed[(await future).index] = data

    committing(journal, work)


@given(st.integers(0, 40), st.integers(0, 2**32))
def test_a_committer_cancelled_at_any_step_leaves_a_journal_that_opens_and_goes_on(
    steps: int, seed: int
) -> None:
    files = SimFiles()
    rng = random.Random(seed)
    journal = open_journal(files)
    confirmed: list[Mark] = []

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            committer = group.create_task(journal.run(SimOffload()), name="journal")
            futures = []
            for step in range(steps):
                futures.append(journal.append(b"%d" % step))
                for _ in range(rng.randint(0, 2)):
                    await asyncio.sleep(0)
            committer.cancel()
        confirmed.extend(future.result() for future in futures if future.done())
        if rng.random() < 0.5:
            async with asyncio.TaskGroup() as group:
                committer = group.create_task(journal.run(SimOffload()), name="journal")
                await journal.drain()
                committer.cancel()
            assert all(future.done() for future in futures)
        journal.close()

    run(scenario)
    entries = found(files)
    assert entries == [b"%d" % step for step in range(len(entries))]
    assert len(entries) >= len(confirmed)


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


def test_every_error_of_the_journal_is_a_journal_error() -> None:
    assert all(
        issubclass(error, JournalError)
        for error in (JournalDamaged, JournalForeign, JournalMissing, JournalStopped)
    )
