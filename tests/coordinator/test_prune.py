"""What was pruned is gone; all that is needed to go on and to verify the last versions is there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from broker.bodies import Bodies
from broker.journal import Journal, JournalDamaged, JournalError
from broker.ports import LockHeld
from coordinator.explain import Reader, explain
from coordinator.history import history
from coordinator.keystore import load_identity
from coordinator.prune import LOCK, VERSIONS_KEPT, prune
from coordinator.records import reading
from coordinator.recovery import FOLDER, open_whole
from coordinator.replay import replay
from coordinator.report.gather import gather
from coordinator.snapshots import Snapshots
from coordinator.state import JobState
from coordinator.verify import verify
from tests.coordinator.pruning import HOME, ROUNDS, Disk, old_and_long, play_round, recorded, small_segments
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import federation

LAST_PRUNED = ROUNDS - VERSIONS_KEPT  # the open round's version is to be verified, too: one more is kept


@pytest.fixture
def disk() -> Disk:
    return recorded()


def pruned() -> Disk:
    disk = recorded()
    prune(disk.ports, HOME)
    return disk


def versions(disk: Disk, job: str) -> dict[int, str]:
    """Those that can be computed again, with their digests."""
    result = replay(disk.ports, HOME, job=job)
    assert result["equal"], result["difference"]
    return {version["version"]: version["computed"] for version in result["jobs"][job]}


def test_whole_segments_and_the_bodies_that_only_they_name_are_removed(disk: Disk) -> None:
    before, segments, bodies = disk.image(), disk.segments(), disk.bodies()
    done = prune(disk.ports, HOME)
    assert 0 < done.segments == len(segments) - len(disk.segments())
    assert 0 < done.bodies == len(bodies) - len(disk.bodies())
    assert disk.segments() == segments[done.segments :]
    assert done.freed_bytes > 0
    assert disk.image() == before


def test_the_last_versions_can_be_computed_again_and_replay_says_which_cannot(disk: Disk) -> None:
    everything = versions(disk, "long")
    assert list(everything) == list(range(ROUNDS + 1))
    prune(disk.ports, HOME)
    result = replay(disk.ports, HOME)
    assert result["equal"]
    assert result["pruned"] == {"old": 3, "long": LAST_PRUNED + 1}
    assert result["jobs"]["old"] == []
    kept = versions(disk, "long")
    assert list(kept) == list(range(LAST_PRUNED + 1, ROUNDS + 1))
    assert len(kept) == VERSIONS_KEPT
    assert kept == {number: everything[number] for number in kept}


def test_a_pruned_log_recovers_from_its_base_alone(disk: Disk) -> None:
    before = disk.image()
    prune(disk.ports, HOME)
    for name in disk.files.names(HOME / "snapshots"):
        if name != "base.fbs":
            disk.files.remove(HOME / "snapshots" / name)
    assert disk.image() == before


def test_what_reads_the_log_reads_a_pruned_one() -> None:
    disk = pruned()
    assert verify(disk.files, HOME, disk.federation).damage == []
    journal, base = open_whole(disk.files, HOME, disk.federation)
    assert base is not None
    with reading(disk.files, HOME, disk.federation) as tables:  # new ones: the disk here is simulated
        found = history(tables, "long")
    rounds = [view["round"] for view in found]
    assert rounds == list(range(rounds[0], ROUNDS + 1))
    assert rounds[0] <= LAST_PRUNED + 1
    assert all(len(view["reports"]) == 2 for view in found)
    reader = Reader(
        load_identity(disk.files, HOME), Bodies(disk.files, HOME / "bodies"), base.recovered.state
    )
    lines = [line for _, _, line in reader.lines(journal)]
    assert lines[0]["index"] == journal.before.index + 1
    updates = [line for line in lines if line["what"] == "update"]
    assert all(line["job"] == "long" and line["round"] for line in updates)
    view = explain(reader, journal, updates[0]["index"])
    assert view is not None
    assert view["verdict"]["folded"]
    report = gather(disk.ports, HOME, "long", broker="memory:test")
    assert [participation.device for participation in report.devices] == ["press-07", "press-08"]


def test_the_bodies_of_an_open_round_stay() -> None:
    disk = pruned()
    _, base = open_whole(disk.files, HOME, disk.federation)
    assert base is not None
    found = verify(disk.files, HOME, disk.federation)
    assert found.bodies >= 2 * VERSIONS_KEPT + 1
    assert found.strays == 0


def test_a_second_prune_removes_nothing_and_two_at_once_are_refused() -> None:
    disk = pruned()
    segments, bodies = disk.segments(), disk.bodies()
    done = prune(disk.ports, HOME)
    assert (done.segments, done.bodies) == (0, 0)
    assert (disk.segments(), disk.bodies()) == (segments, bodies)
    ports = disk.ports
    with ports.lock.hold(HOME / LOCK), pytest.raises(LockHeld):
        prune(ports, HOME)


def test_a_coordinator_that_serves_goes_on_and_what_it_makes_can_be_verified() -> None:
    ports = sim_ports()

    async def play() -> None:
        with small_segments():
            async with federation(HOME, ports, 10) as fed:
                devices = await old_and_long(fed)
                assert prune(ports, HOME).segments > 0
                await play_round(devices[1:], "long", ROUNDS + 1)
                await play_round(devices, "long", ROUNDS + 2)
                await fed.until(lambda: fed.job("long").state is JobState.FINISHED)

    virtual_loop.run(play)
    result = replay(ports, HOME)
    assert result["equal"], result["difference"]
    assert result["jobs"]["long"][-1]["version"] == ROUNDS + 2


def test_a_coordinator_that_starts_on_a_pruned_log_has_its_open_round() -> None:
    disk = pruned()

    async def play() -> None:
        async with federation(HOME, disk.ports, 10) as fed:
            round_ = fed.job("long").round
            assert round_ is not None
            assert (round_.number, len(round_.order)) == (ROUNDS + 1, 1)
            await fed.command("cancel", job="long")

    virtual_loop.run(play)
    assert replay(disk.ports, HOME)["equal"]


class End(BaseException):
    """The process is killed, or the power is gone."""


def changes_of_a_prune() -> int:
    disk, seen = recorded(), list[str]()
    disk.files.on_change = lambda what, path: seen.append(what)
    prune(disk.ports, HOME)
    return len(seen)


@pytest.mark.parametrize("power_cut", [True, False])
def test_a_crash_at_any_change_leaves_a_log_that_opens_and_that_the_next_prune_finishes(
    power_cut: bool,
) -> None:
    whole = recorded()
    image, goal = whole.image(), pruned()
    for point in range(changes_of_a_prune()):
        disk = deepcopy(whole)
        end_at(disk, point, power_cut=power_cut)
        assert disk.image() == image, point
        if point % 10 == 0:
            assert replay(disk.ports, HOME)["equal"], point
        prune(disk.ports, HOME)
        assert (disk.segments(), disk.bodies()) == (goal.segments(), goal.bodies()), point
        assert disk.image() == image
    assert replay(disk.ports, HOME) == replay(goal.ports, HOME)


def end_at(disk: Disk, point: int, *, power_cut: bool) -> None:
    left, files = point, disk.files

    def end(what: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            if power_cut:
                files.crash(random.Random(point))
            else:
                files.restart()
            raise End

    files.on_change = end
    with pytest.raises(End):
        prune(disk.ports, HOME)
    files.on_change = None


def test_a_reader_beside_a_prune_finds_the_whole_state_at_every_moment(disk: Disk) -> None:
    image, looked = disk.image(), 0

    def look(what: str, path: Path) -> None:
        nonlocal looked
        looked += 1
        assert disk.image() == image
        open_whole(disk.files, HOME, disk.federation)[0].close()

    disk.files.on_change = look
    prune(disk.ports, HOME)
    assert looked > 20


@contextmanager
def pruned_behind(kind: type, name: str, disk: Disk) -> Iterator[list[str]]:
    """The log is pruned just after ``name`` of ``kind`` was called for the first time."""
    called: list[str] = []
    plain = getattr(kind, name)

    def with_prune(*args: Any, **kwargs: Any) -> Any:
        result = plain(*args, **kwargs)
        if not called:
            called.append(name)
            prune(disk.ports, HOME)
        return result

    with pytest.MonkeyPatch.context() as patch:
        # A class's method is found through the class, too.
        patch.setattr(kind, name, staticmethod(with_prune) if name == "open" else with_prune)
        yield called


def has_its_state(disk: Disk) -> None:
    assert disk.image() == recorded().image()


def is_whole(disk: Disk) -> None:
    assert verify(disk.files, HOME, disk.federation).damage == []


@pytest.mark.parametrize("look", [has_its_state, is_whole])
@pytest.mark.parametrize(("kind", "name"), [(Snapshots, "look"), (Journal, "open")])
def test_a_start_or_a_check_beside_a_prune_needs_no_other_snapshot_than_the_base(
    disk: Disk, kind: type, name: str, look: Callable[[Disk], None]
) -> None:
    disk.files.remove(HOME / "snapshots")
    with pruned_behind(kind, name, disk) as called:
        look(disk)
    assert called


def test_a_pruned_log_without_its_base_or_its_first_segment_is_refused() -> None:
    disk = pruned()
    first = disk.segments()[0]
    disk.files.remove(HOME / FOLDER / first)
    with pytest.raises(JournalDamaged, match=f"{first}.*it is missing"):
        Journal.open(disk.files, HOME / FOLDER, disk.federation)
    disk = pruned()
    disk.files.remove(HOME / "snapshots")
    with pytest.raises(
        JournalError, match=r"begins with entry \d+, and no snapshot holds the state before it"
    ):
        disk.image()
    with pytest.raises(JournalError, match="no snapshot holds"):
        replay(disk.ports, HOME)
    assert "no snapshot holds" in verify(disk.files, HOME, disk.federation).damage[0].what


def test_a_damaged_beginning_is_refused_by_name() -> None:
    disk = pruned()
    file = disk.files.open(HOME / FOLDER / "begin")
    file.write_at(30, b"\xff")
    with pytest.raises(JournalDamaged, match="begin: damaged at byte 0"):
        disk.image()
