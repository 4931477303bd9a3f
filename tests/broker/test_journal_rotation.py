"""A new segment is begun at every point of a crash, a full disk and a reader beside it."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.journal import Journal
from broker.journal_file import HEADER_BYTES
from broker.room import Room
from tests.sim.journals import HERE, committing, found, open_journal
from tests.sim.machine import SimFiles, SimOffload
from tests.sim.virtual_loop import run

BOUND = HEADER_BYTES + 90  # two frames, and the next segment
FRAMES = 7
REOPENINGS = range(3)


class End(BaseException):
    """The process is killed, or the power is gone."""


def changes_of(act: Callable[[SimFiles], None]) -> list[str]:
    """What ``act`` does to a disk."""
    files, seen = SimFiles(), []
    files.on_change = lambda what, path: seen.append(f"{what} {path.name}")
    act(files)
    return seen


def one_life(files: SimFiles, confirmed: list[bytes], tried: list[bytes]) -> None:
    """Append `FRAMES` frames, noting what is confirmed."""
    journal = open_journal(files, segment_bytes=BOUND)
    confirmed[:] = [entry.data for entry in journal.entries()]

    async def work() -> None:
        for _ in range(FRAMES):
            tried.append(b"%d" % len(tried))
            await journal.append(tried[-1])
            confirmed.append(tried[-1])

    committing(journal, work)
    journal.close()


def test_the_recorded_life_rotates_and_each_kind_of_change_is_in_it() -> None:
    seen = changes_of(lambda files: one_life(files, [], []))
    assert {what.split()[0] for what in seen} >= {"open", "append", "sync", "rename", "sync_dir"}
    assert seen.count("rename 00000002.fbj") == seen.count("rename 00000004.fbj") == 1
    begun = seen.index("rename 00000002.fbj")
    first_frame = seen.index("append 00000002.fbj")
    header = [
        "open 00000002.fbj.new",
        "append 00000002.fbj.new",
        "sync 00000002.fbj.new",
        "rename 00000002.fbj",
        "sync_dir journal",
    ]
    assert seen[begun - 3 : first_frame] == header, "whole and durable before anything is appended"


@pytest.mark.parametrize("power_cut", [True, False])
def test_a_crash_at_any_change_of_appends_and_rotations_loses_nothing_that_was_confirmed(
    power_cut: bool,
) -> None:
    points = len(changes_of(lambda files: one_life(files, [], [])))
    assert points > 30
    for point in range(points):
        for seed in REOPENINGS:
            end_at(point, random.Random(f"{point} {seed}"), power_cut=power_cut)


def end_at(point: int, rng: random.Random, *, power_cut: bool) -> None:
    files, confirmed, tried = SimFiles(), list[bytes](), list[bytes]()
    left = point

    def end(what: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            if power_cut:
                files.crash(rng)
            else:
                files.restart()
            raise End

    files.on_change = end
    try:
        one_life(files, confirmed, tried)
    except* End:
        pass
    files.on_change = None
    kept = reopened(files) if files.names(HERE) else []
    assert kept[: len(confirmed)] == confirmed
    assert kept == tried[: len(kept)], "in order, none doubled, none invented"
    one_life(files, confirmed, tried)
    assert found(files) == confirmed == [*kept, *tried[-FRAMES:]]


def reopened(files: SimFiles) -> list[bytes]:
    journal = open_journal(files, segment_bytes=BOUND)
    journal.close()
    return found(files)


def test_a_disk_that_is_full_at_any_change_of_a_rotation_is_waited_for() -> None:
    points = changes_of(lambda files: one_life(files, [], []))
    for point in range(points.index("append 00000001.fbj"), len(points)):
        full_at(point)


def full_at(point: int) -> None:
    files = SimFiles()
    seen = tries = 0

    def full(what: str, path: Path) -> None:
        nonlocal seen, tries
        seen += 1
        if seen > point and tries < 3 and what != "truncate":
            tries += 1
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    files.on_change = full
    journal = open_journal(files, segment_bytes=BOUND)

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            committer = group.create_task(journal.run(Room(SimOffload(), "the disk")), name="journal")
            for number in range(FRAMES):
                assert (await journal.append(b"%d" % number)).index == number + 1
            committer.cancel()
        journal.close()

    run(scenario)
    assert tries == 3
    files.on_change = None
    files.crash(random.Random(point))
    assert reopened(files) == [b"%d" % number for number in range(FRAMES)]
    segments = [name for name in files.names(HERE) if name.endswith(".fbj")]
    assert segments == [f"{number:08d}.fbj" for number in range(1, 5)]


def test_a_reader_beside_a_writer_finds_all_that_was_confirmed_at_every_moment() -> None:
    files, confirmed, tried = SimFiles(), list[bytes](), list[bytes]()
    journal = open_journal(files, segment_bytes=BOUND)
    earlier = open_journal(files, read_only=True)
    looked = 0

    def look(what: str, path: Path) -> None:
        nonlocal looked
        looked += 1
        reader = open_journal(files, read_only=True)
        read = [entry.data for entry in reader.entries()]
        reader.close()
        assert read[: len(confirmed)] == confirmed
        assert read == tried[: len(read)]

    async def work() -> None:
        for _ in range(FRAMES):
            tried.append(b"%d" % len(tried))
            await journal.append(tried[-1])
            confirmed.append(tried[-1])
            assert [entry.data for entry in journal.entries()] == confirmed, "and so does the writer itself"

    files.on_change = look
    committing(journal, work)
    journal.close()
    assert looked > 20
    assert list(earlier.entries()) == [], "what came after it was opened is not looked at"
    earlier.close()


def test_a_journal_that_is_read_while_it_rotates_gives_what_was_there() -> None:
    files = SimFiles()
    journal: Journal = open_journal(files, segment_bytes=BOUND)

    async def work() -> None:
        await journal.append(b"0")
        entries = journal.entries()
        for number in range(1, FRAMES):
            await journal.append(b"%d" % number)
        assert [entry.data for entry in entries] == [b"%d" % number for number in range(FRAMES)]
        entries = journal.entries()
        assert next(entries).data == b"0"
        for number in range(FRAMES, 2 * FRAMES):
            await journal.append(b"%d" % number)
        assert [entry.data for entry in entries] == [b"%d" % number for number in range(1, FRAMES)]

    committing(journal, work)
