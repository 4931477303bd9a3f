"""The simulation is only worth what its disk is: it behaves as a real one, until it loses power."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.ports import File, Files, write_atomic, write_export
from broker.system import system_ports
from tests.sim.machine import SimFiles

A = Path("/a")


def create(files: Files, path: Path, data: bytes = b"") -> File:
    file = files.open(path, create=True)
    file.append(data)
    return file


def crashes(count: int = 200) -> Iterator[random.Random]:
    return (random.Random(seed) for seed in range(count))


def durable(files: SimFiles, path: Path, data: bytes) -> File:
    file = create(files, path, data)
    file.sync()
    files.sync_dir(path.parent)
    return file


Call = tuple[str, int, int, bytes]
calls = st.lists(
    st.tuples(
        st.sampled_from(["append", "write_at", "truncate", "rename", "remove", "open", "names"]),
        st.integers(0, 3),
        st.integers(0, 30),
        st.binary(max_size=20),
    ),
    max_size=25,
)


def outcome(files: Files, root: Path, call: Call) -> object:
    """What the call gives, or the kind of its error."""
    what, number, offset, data = call
    path = root / f"f{number}"
    try:
        if what == "rename":
            files.rename(path, root / f"f{offset % 4}")
        elif what == "remove":
            files.remove(path)
        elif what == "names":
            return files.names(root)
        else:
            file = files.open(path, create=what == "append")
            try:
                if what == "append":
                    file.append(data)
                elif what == "write_at":
                    file.write_at(offset, data)
                elif what == "truncate":
                    file.truncate(offset)
                out = bytearray(10)
                read = file.read_into(offset, memoryview(out)[2:])
                return file.size(), file.read_at(0, 100), file.read_at(offset, 3), read, bytes(out)
            finally:
                file.close()
    except OSError as error:
        return type(error)
    return None


@given(calls)
def test_while_nothing_crashes_the_disk_behaves_as_a_real_one(
    tmp_path_factory: pytest.TempPathFactory, made: list[Call]
) -> None:
    root = tmp_path_factory.mktemp("disk")
    real, simulated = system_ports().files, SimFiles()
    simulated.make_dir(root)
    for call in made:
        assert outcome(simulated, root, call) == outcome(real, root, call)
    assert simulated.names(root) == real.names(root)


@given(calls, st.integers(0, 2**32))
def test_after_a_restart_all_that_was_written_is_there(made: list[Call], seed: int) -> None:
    files = SimFiles()
    for call in made:
        outcome(files, Path("/"), call)
    before = {name: files.read(Path("/") / name) for name in files.names(Path("/"))}
    files.halt()
    with pytest.raises(OSError, match="stopped"):
        files.names(Path("/"))
    files.restart()
    assert {name: files.read(Path("/") / name) for name in files.names(Path("/"))} == before
    for name in before:
        file = files.open(Path("/") / name)
        file.sync()
        file.close()
    files.sync_dir(Path("/"))
    files.crash(random.Random(seed))
    assert {name: files.read(Path("/") / name) for name in files.names(Path("/"))} == before


def test_a_crash_keeps_what_was_synced_and_a_random_prefix_of_the_rest() -> None:
    seen = set()
    for rng in crashes():
        files = SimFiles()
        durable(files, A, b"kept").append(b"lost")
        files.crash(rng)
        data = files.read(A)
        assert data.startswith(b"kept")
        seen.add(data[4:])
    assert {b"", b"l", b"lo", b"los", b"lost"} <= seen
    assert any(data.endswith(b"\0") for data in seen)
    assert all(b"lost".startswith(data.rstrip(b"\0")) and len(data) <= 4 for data in seen)


def test_a_crash_takes_back_truncations_and_overwrites_or_keeps_them() -> None:
    seen = set()
    for rng in crashes():
        files = SimFiles()
        file = durable(files, A, b"abcdef")
        file.write_at(1, b"XX")
        file.truncate(3)
        files.crash(rng)
        seen.add(files.read(A))
    assert {b"abcdef", b"aXXdef", b"aXcdef", b"aXX", b"abc"} <= seen


def test_a_new_name_may_be_lost_until_its_folder_is_synced() -> None:
    seen = set()
    for rng in crashes():
        files = SimFiles()
        create(files, A, b"data").sync()
        files.crash(rng)
        seen.add(files.exists(A))
    assert seen == {True, False}
    for rng in crashes(20):
        files = SimFiles()
        durable(files, A, b"data")
        files.crash(rng)
        assert files.read(A) == b"data"


def test_an_unsynced_rename_or_removal_is_whole_or_not_at_all() -> None:
    renamed, removed = set(), set()
    for rng in crashes():
        files = SimFiles()
        durable(files, A, b"old")
        durable(files, Path("/b"), b"new")
        files.rename(Path("/b"), A)
        files.crash(rng)
        renamed.add((tuple(files.names(Path("/"))), files.read(A)))
        files.remove(A)
        files.crash(rng)
        removed.add(files.exists(A))
    assert renamed == {(("a", "b"), b"old"), (("a",), b"new")}
    assert removed == {True, False}


@given(st.integers(0, 2**32), st.integers(1, 7))
def test_an_atomic_write_leaves_old_or_new_bytes_after_a_crash_at_any_change(seed: int, steps: int) -> None:
    files = SimFiles()
    rng = random.Random(seed)
    write_atomic(files, A, b"old")
    left = steps

    def maybe_crash(what: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            files.crash(rng)

    files.on_change = maybe_crash
    try:
        write_atomic(files, A, b"new")
    except OSError:
        assert files.read(A) in (b"old", b"new")
    else:
        files.crash(rng)
        assert files.read(A) == b"new"


def test_a_new_file_is_made_only_where_nothing_is() -> None:
    files = SimFiles()
    files.make_dir(Path("/folder"))
    files.create(A).append(b"1")
    for taken in (A, Path("/folder")):
        with pytest.raises(FileExistsError):
            files.create(taken)
    with pytest.raises(FileNotFoundError):
        files.create(Path("/none/a"))
    assert files.read(A) == b"1"


def test_an_export_that_finds_no_room_leaves_the_disk_as_it_was() -> None:
    files = SimFiles()
    durable(files, A, b"old")

    def full(what: str, path: Path) -> None:
        if what == "append":
            raise OSError(errno.ENOSPC, "no space", str(path))

    files.on_change = full
    with pytest.raises(OSError, match="no space"):
        write_export(files, A, b"new")
    assert (files.names(Path("/")), files.read(A)) == (["a"], b"old")


def test_open_files_die_with_the_machine() -> None:
    files = SimFiles()
    file = durable(files, A, b"data")
    files.crash(random.Random(0))
    for call in (file.sync, file.size, lambda: file.append(b"x"), lambda: file.read_at(0, 1)):
        with pytest.raises(OSError, match="stopped"):
            call()
    assert files.read(A) == b"data"


def test_folders_hold_their_files_and_go_with_them() -> None:
    files = SimFiles()
    with pytest.raises(FileNotFoundError):
        files.open(Path("/x/y/f"), create=True)
    files.make_dir(Path("/x/y"))
    create(files, Path("/x/y/f"))
    assert files.names(Path("/x")) == ["y"]
    files.remove(Path("/x"))
    assert files.names(Path("/")) == []
    with pytest.raises(FileNotFoundError):
        files.sync_dir(Path("/x"))


def test_a_full_disk_is_an_oserror_of_the_test_and_changes_nothing() -> None:
    files = SimFiles()
    file = durable(files, A, b"data")

    def full(what: str, path: Path) -> None:
        if what == "append":
            raise OSError(28, "No space left on device", str(path))

    files.on_change = full
    with pytest.raises(OSError, match="No space"):
        file.append(b"more")
    assert file.size() == 4


def test_a_disk_filled_from_another_is_durable_and_goes_its_own_way() -> None:
    first, second = SimFiles(), SimFiles()
    first.make_dir(Path("/empty"))
    file = first.open(Path("/f"), create=True)
    file.append(b"abc")
    second.fill(first)
    file.append(b"d")
    second.crash(random.Random(0))
    assert second.read(Path("/f")) == b"abc"
    assert second.exists(Path("/empty"))
