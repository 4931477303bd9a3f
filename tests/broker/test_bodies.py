"""The store of large bodies: on a real disk, and under power cuts on a simulated one."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bodies import Bodies
from broker.ports import Files
from broker.system import system_ports
from tests.sim.machine import SimFiles

PARTS = [b"one", b"", b"two" * 1000]
NAME = hashlib.sha256(b"".join(PARTS)).hexdigest()


@pytest.fixture(params=["real", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Files, Path]:
    if request.param == "real":
        return system_ports().files, tmp_path
    files = SimFiles()
    files.make_dir(tmp_path)
    return files, tmp_path


def test_a_stored_body_is_read_back_until_removed(place: tuple[Files, Path]) -> None:
    files, folder = place
    bodies = Bodies(files, folder / "bodies")
    assert bodies.names() == []
    assert not bodies.has(NAME)
    bodies.put(NAME, PARTS)
    bodies.sync()
    assert bodies.has(NAME)
    assert bodies.names() == [NAME]
    assert bodies.size(NAME) == 3003
    file = bodies.open(NAME)
    assert file.read_at(0, 10_000) == b"".join(PARTS)
    file.close()
    bodies.remove(NAME)
    bodies.remove(NAME)
    assert bodies.names() == []
    with pytest.raises(FileNotFoundError):
        bodies.open(NAME)
    with pytest.raises(FileNotFoundError):
        bodies.size(NAME)


def test_a_body_that_is_there_is_not_written_again(place: tuple[Files, Path]) -> None:
    files, folder = place
    bodies = Bodies(files, folder)
    bodies.put(NAME, PARTS)
    unread = iter([b"other"])
    bodies.put(NAME, unread)
    assert next(unread) == b"other"
    assert files.read(folder / NAME) == b"".join(PARTS)


def test_a_body_that_fails_half_way_leaves_nothing(place: tuple[Files, Path]) -> None:
    files, folder = place

    def parts() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("cannot be opened")

    bodies = Bodies(files, folder / "bodies")
    with pytest.raises(ValueError, match="cannot be opened"):
        bodies.put(NAME, parts())
    assert files.names(folder / "bodies") == []


def test_a_spool_file_is_adopted_once(place: tuple[Files, Path]) -> None:
    files, folder = place
    bodies = Bodies(files, folder / "bodies")
    spool = folder / "transfer-1"
    for _ in range(2):
        file = files.open(spool, create=True)
        file.append(b"".join(PARTS))
        file.close()
        bodies.adopt(NAME, spool)
        assert not files.exists(spool)
        assert bodies.size(NAME) == 3003
    bodies.adopt(NAME, spool)
    with pytest.raises(FileNotFoundError):
        bodies.adopt(hashlib.sha256(b"other").hexdigest(), spool)


def test_drafts_of_a_crash_are_no_bodies_and_are_swept(place: tuple[Files, Path]) -> None:
    files, folder = place
    bodies = Bodies(files, folder)
    bodies.put(NAME, PARTS)
    files.open(folder / f"{NAME}.0.new", create=True).close()
    assert bodies.names() == [NAME]
    bodies.sweep()
    assert files.names(folder) == [NAME]


@pytest.mark.parametrize(
    "name", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "../" + "a" * 61, "a" * 64 + "\n"]
)
def test_what_is_no_digest_is_no_name(name: str) -> None:
    bodies = Bodies(SimFiles(), Path("/bodies"))
    for call in (bodies.has, bodies.size, bodies.open, bodies.remove):
        with pytest.raises(ValueError, match="64 hex digits"):
            call(name)
    with pytest.raises(ValueError, match="64 hex digits"):
        bodies.put(name, [])
    with pytest.raises(ValueError, match="64 hex digits"):
        bodies.adopt(name, Path("/spool"))


class Cut(Exception):
    """The power is gone."""


@given(st.integers(0, 2**32), st.integers(1, 14), st.booleans())
def test_a_power_cut_leaves_whole_bodies_only_and_all_that_were_synced(
    seed: int, steps: int, spool: bool
) -> None:
    rng = random.Random(seed)
    files = SimFiles()
    bodies = Bodies(files, Path("/bodies"))
    contents = {hashlib.sha256(data).hexdigest(): data for data in (b"a" * 50, b"b" * 70, b"c")}
    synced: list[str] = []
    left = steps

    def maybe_cut(what: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            files.crash(rng)
            raise Cut

    def work() -> None:
        for name, data in contents.items():
            if spool:
                file = files.open(Path("/spool"), create=True)
                file.append(data)
                file.sync()
                bodies.adopt(name, Path("/spool"))
            else:
                bodies.put(name, [data[:20], data[20:]])
            if rng.random() < 0.5:
                bodies.sync()
                synced.extend(set(bodies.names()) - set(synced))

    files.on_change = maybe_cut
    try:
        work()
    except Cut:
        pass
    else:
        files.crash(rng)
    files.on_change = None
    assert set(synced) <= set(bodies.names())
    assert all(files.read(Path("/bodies") / name) == contents[name] for name in bodies.names())
