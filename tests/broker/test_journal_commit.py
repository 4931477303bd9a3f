"""How a journal commits: groups, order, bounds, failing disks, cancellation, power cuts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.journal import (
    ENTRY_BYTES_MAX,
    PENDING_BYTES_MAX,
    PENDING_ENTRIES_MAX,
    Journal,
    JournalStopped,
    Mark,
)
from broker.journal_file import FRAME_ENTRIES_MAX
from broker.journal_segments import SEGMENT_BYTES
from tests.sim.journals import HERE, committing, found, open_journal
from tests.sim.machine import SimFiles, SimOffload
from tests.sim.virtual_loop import run

P = ParamSpec("P")
R = TypeVar("R")


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


def test_futures_resolve_in_the_order_of_appends() -> None:
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


class NoThreads(SimOffload):
    """An offload that cannot run anything."""

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        raise OSError(11, "Resource temporarily unavailable")


def test_a_failure_that_is_not_the_disks_is_not_taken_for_one() -> None:
    journal = open_journal(SimFiles())

    async def scenario() -> None:
        future = journal.append(b"a")
        with pytest.raises(OSError, match="temporarily unavailable"):
            await journal.run(NoThreads())
        assert not future.done()
        journal.close()

    run(scenario)


def test_room_is_given_only_below_the_bounds_and_drain_waits_for_all() -> None:
    async def fill(size: int, number: int) -> None:
        journal = open_journal(SimFiles())
        for _ in range(number):
            await asyncio.wait_for(journal.room(), 1)
            journal.append(bytes(size))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(journal.room(), 1)
        async with asyncio.TaskGroup() as group:
            committer = group.create_task(journal.run(SimOffload()), name="journal")
            await asyncio.wait_for(journal.room(), 1)
            await journal.drain()
            assert journal.count == number
            committer.cancel()

    run(lambda: fill(ENTRY_BYTES_MAX, PENDING_BYTES_MAX // ENTRY_BYTES_MAX))
    run(lambda: fill(0, PENDING_ENTRIES_MAX))


def test_entries_and_names_out_of_bounds_are_refused() -> None:
    files = SimFiles()
    journal = open_journal(files)

    async def work() -> None:
        with pytest.raises(ValueError, match=f"at most {ENTRY_BYTES_MAX} bytes, not {ENTRY_BYTES_MAX + 1}"):
            journal.append(bytes(ENTRY_BYTES_MAX + 1))
        await journal.append(bytes(ENTRY_BYTES_MAX))
        with pytest.raises(RuntimeError, match="already running"):
            await journal.run(SimOffload())
        with pytest.raises(RuntimeError, match=r"cancel run\(\)"):
            journal.close()

    committing(journal, work)
    assert len(found(files)[0]) == ENTRY_BYTES_MAX
    with pytest.raises(ValueError, match="16 bytes"):
        Journal.open(files, HERE, b"short")


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


class End(BaseException):
    """The process is killed, or the power is gone."""


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_a_kill_or_power_cut_at_any_change_loses_no_entry_that_was_resolved_or_read(
    seed: int,
) -> None:
    rng = random.Random(seed)
    files = SimFiles()
    confirmed: dict[int, bytes] = {}
    appended: list[bytes] = []
    for _ in range(rng.randint(1, 4)):
        left = rng.randint(1, 14)

        def maybe_end(what: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                rng.choice((files.restart, lambda: files.crash(rng)))()
                raise End

        files.on_change = maybe_end
        try:
            one_life(files, rng, confirmed, appended)
        except* End:
            pass
        files.on_change = None
    files.crash(rng)
    journal = open_journal(files)
    entries = [entry.data for entry in journal.entries()]
    assert all(entries[index - 1] == data for index, data in confirmed.items())
    assert journal.count == len(entries)
    remaining = iter(appended)  # a subsequence, in order: nothing doubled, nothing invented
    assert all(data in remaining for data in entries)


def one_life(files: SimFiles, rng: random.Random, confirmed: dict[int, bytes], appended: list[bytes]) -> None:
    journal = open_journal(files, segment_bytes=rng.choice((100, 300, SEGMENT_BYTES)))
    confirmed.update((entry.index, entry.data) for entry in journal.entries())

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
    journal = open_journal(files, segment_bytes=rng.choice((100, SEGMENT_BYTES)))
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
