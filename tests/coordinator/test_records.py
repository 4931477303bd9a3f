"""The read model says what the log says, whatever became of its file."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from broker.journal import Entry, Journal
from broker.system import system_ports
from coordinator import records
from coordinator.keystore import load_identity
from coordinator.prune import prune
from coordinator.tables import TABLES
from schemas import events as e
from tests.coordinator.pruning import COUNT, ROUNDS, old_and_long, play_round, small_segments
from tests.standin import federation, spec

FILES = system_ports().files
Tables = dict[str, list[tuple[Any, ...]]]


def read(directory: Path) -> Tables:
    """All rows of all tables, brought up to date."""
    with records.reading(FILES, directory, load_identity(FILES, directory).federation) as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for name, table in TABLES.tables.items()
        }


def anew(directory: Path) -> Tables:
    (directory / records.FILE).unlink(missing_ok=True)
    return read(directory)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with two jobs, in small segments."""
    directory = tmp_path_factory.mktemp("records") / "c"

    async def play() -> None:
        with small_segments():
            async with federation(directory, system_ports(), COUNT) as fed:
                await old_and_long(fed)

    asyncio.run(play())
    return directory


@pytest.fixture
def home(played: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(played, tmp_path / "c"))


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The entries that were read."""
    seen: list[int] = []
    entries = Journal.entries

    def counted(self: Journal, after: int = 0) -> Any:
        for entry in entries(self, after):
            seen.append(entry.index)
            yield entry

    monkeypatch.setattr(Journal, "entries", counted)
    return seen


async def test_a_live_coordinators_records_are_followed(tmp_path: Path, applied: list[int]) -> None:
    async with federation(tmp_path / "c", system_ports(), COUNT) as fed:
        devices = [await fed.device("press-07"), await fed.device("press-08")]
        job = spec(rounds=3, cohort=2, min_reports=2, deadline_s=86_400.0, update_norm_max=1e3)
        await fed.command("submit", spec=job)
        await play_round(devices, "job", 0)
        first = read(tmp_path / "c")
        known = len(applied)
        request = await devices[0].next(e.TrainingRequest)
        decline = e.Decline(job=request.job, request=request.request, reason="busy", text="later")
        await devices[0].say(decline)
        await fed.until(lambda: fed.job("job").requests["press-07", request.request].state == "declined")
        await fed.coordinator.ledger.journal.drain()
        durable = fed.coordinator.ledger.journal.count
        second = read(tmp_path / "c")
        followed = applied[known:]  # with what is being written at this moment: a request sent again
        assert followed == list(range(known + 1, known + 1 + len(followed)))
        assert followed[-1] >= durable
        assert second == anew(tmp_path / "c")
    assert [row[:2] for row in first["devices"]] == [("press-07", "press-07"), ("press-08", "press-08")]
    assert [row[5] for row in first["requests"]].count("folded") == 2
    assert ("declined", "busy") in [(row[5], row[7]) for row in second["requests"]]


def test_they_hold_what_happened(home: Path) -> None:
    tables = read(home)
    assert [(row[0], row[3]) for row in tables["jobs"]] == [("long", "running"), ("old", "finished")]
    assert sorted((row[0], row[1], row[4]) for row in tables["rounds"] if row[4] is not None) == [
        *(("long", number, number) for number in range(1, ROUNDS + 1)),
        ("old", 1, 1),
        ("old", 2, 2),
    ]
    states = [row[5] for row in tables["requests"]]
    assert {state: states.count(state) for state in set(states)} == {
        "folded": 2 * (ROUNDS + 2) + 1,
        "issued": 1,
    }


def damaged(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)


def of_another_form(path: Path) -> None:
    _do(path, f"PRAGMA user_version = {records.FORM + 1}")


def of_another_history(path: Path) -> None:
    _do(path, "UPDATE position SET head = zeroblob(32)")


def ahead(path: Path) -> None:
    _do(path, "UPDATE position SET entry = entry + 1000")


def without_position(path: Path) -> None:
    _do(path, "DELETE FROM position")


def of_another_program(path: Path) -> None:
    path.unlink()
    _do(path, "CREATE TABLE position (x)")


def _do(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "spoil",
    [damaged, of_another_form, of_another_history, ahead, without_position, of_another_program],
    ids=lambda spoil: spoil.__name__,
)
def test_what_does_not_follow_from_the_log_is_made_anew(
    home: Path, applied: list[int], spoil: Callable[[Path], None]
) -> None:
    wanted = read(home)
    spoil(home / records.FILE)
    applied.clear()
    assert read(home) == wanted
    assert applied[-1] == len(applied) > 0, "all of the log was read"
    applied.clear()
    assert read(home) == wanted
    assert applied == []


def test_a_file_that_another_holds_is_left_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch, applied: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = read(home)
    monkeypatch.setattr(records, "PATIENCE_S", 0.1)
    other = sqlite3.connect(home / records.FILE)
    other.execute("BEGIN EXCLUSIVE")
    assert read(home) == wanted, "from memory"
    assert "can't be kept (database is locked)" in caplog.text
    other.close()
    applied.clear()
    assert read(home) == wanted
    assert applied == []


def test_where_no_file_can_be_they_are_made_in_memory(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = read(home)
    assert (home / records.FILE).stat().st_mode & 0o777 == 0o600
    (home / records.FILE).unlink()
    (home / records.FILE).mkdir()
    assert read(home) == wanted
    assert "what was pruned from the journal is not shown" in caplog.text


def test_a_reader_that_dies_leaves_the_tables_as_they_were(
    home: Path, monkeypatch: pytest.MonkeyPatch, applied: list[int]
) -> None:
    wanted = read(home)
    (home / records.FILE).unlink()
    put = records._apply

    def dies(connection: Any, entry: Entry) -> None:
        put(connection, entry)
        if entry.index == 60:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records, "_apply", dies)
        with pytest.raises(KeyboardInterrupt):
            read(home)
    assert read(home) == wanted


def test_readers_beside_each_other_apply_everything_once(home: Path) -> None:
    with ProcessPoolExecutor(3) as pool:
        found = list(pool.map(read, [home] * 6))
    assert found == [anew(home)] * 6


def test_what_is_pruned_stays_known(home: Path) -> None:
    wanted = anew(home)
    (home / records.FILE).unlink()
    assert prune(system_ports(), home).segments > 0
    assert read(home) == wanted
    less = anew(home)
    assert 0 < len(less["rounds"]) < len(wanted["rounds"]), "and is gone with the file"
    assert set(less["rounds"]) <= set(wanted["rounds"])


def test_what_the_records_keep_is_durable_before_the_log_gives_it_up(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the folder is synced, a power cut may bring back the journal that SQLite removed: with it the
    next reader would roll back what prune relied on."""
    disk, done = type(FILES), list[tuple[str, bool]]()
    sync_dir, rename = disk.sync_dir, disk.rename

    def syncs(self: Any, path: Path) -> None:
        sync_dir(self, path)
        if path == home:
            done.append(("synced", (home / records.FILE).stat().st_size > 0))

    def renames(self: Any, source: Path, target: Path) -> None:
        done.append((target.name, (home / f"{records.FILE}-journal").exists()))
        rename(self, source, target)

    monkeypatch.setattr(disk, "sync_dir", syncs)
    monkeypatch.setattr(disk, "rename", renames)
    (home / records.FILE).unlink(missing_ok=True)
    assert prune(system_ports(), home).segments > 0
    assert done == [("synced", True), ("base.fbs", False), ("begin", False)]
