"""A full disk is waited for; every other failure is told at once."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from broker.journal import Journal
from broker.room import RETRY_S, Room
from tests.sim.disk import SimFiles
from tests.sim.machine import SimOffload
from tests.sim.virtual_loop import run

HOME = Path("/journal")


class Disk:
    """Full for the first ``tries`` writes."""

    def __init__(self, tries: int, number: int = errno.ENOSPC) -> None:
        self.left = tries
        self.number = number
        self.written: list[str] = []

    def write(self, what: str) -> int:
        if self.left:
            self.left -= 1
            raise OSError(self.number, "No space left on device", "/disk/file")
        self.written.append(what)
        return len(self.written)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("way", ["run", "here"])
def test_what_found_no_room_is_done_again_until_there_is_some(number: int, way: str) -> None:
    async def play() -> None:
        room, disk = Room(SimOffload(), "the disk of /c"), Disk(3, number)
        async with asyncio.TaskGroup() as tasks:
            waits = tasks.create_task(getattr(room, way)(disk.write, "a"))
            await asyncio.sleep(2.5 * RETRY_S)
            assert room.problem == "the disk of /c: No space left on device; free space, and work goes on"
            assert await waits == 1
        assert (disk.written, room.problem) == (["a"], "")

    run(play)


def test_the_problem_stands_as_long_as_anybody_waits() -> None:
    async def play() -> None:
        room, short, long = Room(SimOffload(), "disk"), Disk(1), Disk(5)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(room.run(short.write, "a"))
            tasks.create_task(room.run(long.write, "b"))
            await asyncio.sleep(2.5 * RETRY_S)
            assert short.written
            assert room.problem
        assert room.problem == ""

    run(play)


def test_other_failures_come_out_at_once_and_a_wait_can_be_cancelled() -> None:
    async def play() -> None:
        room = Room(SimOffload(), "disk")
        with pytest.raises(OSError, match="No space"):
            await room.run(Disk(1, errno.EIO).write, "a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await room.run(Disk(1_000).write, "a")
        assert room.problem == ""

    run(play)


def test_a_journal_goes_on_after_its_disk_was_full_and_holds_every_entry_once() -> None:
    async def play() -> None:
        files, full = SimFiles(), False

        def refuse(what: str, _: object) -> None:
            if full and what in ("append", "truncate"):
                raise OSError(errno.ENOSPC, "No space left on device")

        files.on_change = refuse
        journal = Journal.open(files, HOME, bytes(16))
        async with asyncio.TaskGroup() as tasks:
            commits = tasks.create_task(journal.run(Room(SimOffload(), "disk")), name="journal")
            await journal.append(b"before")
            full = True
            waits = [journal.append(f"{number}".encode()) for number in range(3)]
            await asyncio.sleep(10 * RETRY_S)
            assert not any(wait.done() for wait in waits)
            await journal.room()
            full = False
            assert [(await wait).index for wait in waits] == [2, 3, 4]
            commits.cancel()
        journal.close()
        again = Journal.open(files, HOME, bytes(16))
        assert [entry.data for entry in again.entries()] == [b"before", b"0", b"1", b"2"]

    run(play)
