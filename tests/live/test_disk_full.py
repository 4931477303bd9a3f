"""Real processes on a real file system that is full, at every broker: they wait, say so, and go on when
there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.system import system_ports
from coordinator.cli.state import open_journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import UpdateJudged
from coordinator.replay import replay
from tests.live.fleet import Fleet
from tests.live.own_broker import at_rabbitmq, mosquitto_beside

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

SIZE = "16m"
ROUNDS = 12  # several are still to come when the disk is filled after the second
TRAINED_S = 180.0  # patience for what takes real training


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of `SIZE`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "fedbus-test", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        reason = f"a small file system can't be mounted here: {mounted.stderr.strip()}; run this as root"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


Place = Callable[[Fleet], object]
"""Makes the federation at a broker that runs."""


@pytest.fixture(params=["embedded", "mosquitto", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:

        def beside_mosquitto(fleet: Fleet) -> None:
            _, broker = mosquitto_beside(fleet.operate, fleet.home, tmp_path / "mosquitto")
            stack.enter_context(broker)

        match request.param:
            case "embedded":
                yield Fleet.found
            case "mosquitto":
                yield beside_mosquitto
            case _:
                node = request.getfixturevalue("rabbitmq")
                yield lambda fleet: at_rabbitmq(fleet.operate, node, tmp_path / "management")


def fill(disk: Path) -> Path:
    """Take all the room that is left; removing the file gives it back."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


class OnSmallDisk(Fleet):
    """``who`` keeps its state on the small disk: the coordinator or a device."""

    def __init__(self, directory: Path, disk: Path, who: str, place: Place = Fleet.found) -> None:
        super().__init__(directory, 2)
        self._disk = disk
        self._moved = {who: disk / who}
        self._place = place
        self.home = self._moved.get("coordinator", self.home)

    def found(self) -> None:
        self._place(self)

    def agent_dir(self, device: str) -> Path:
        return self._moved.get(device) or super().agent_dir(device)

    def log(self, who: str) -> str:
        return (self.directory / f"{who}.log").read_text()

    def status(self) -> dict[str, Any]:
        """The coordinator's, once it answers."""
        answers: list[dict[str, Any]] = []

        def answered() -> bool:
            answers.append(self.ask("status") or {})
            return bool(answers[-1])

        self.until(answered)
        return answers[-1]

    def rounds_done(self) -> int:
        return int(self.job().get("rounds_done", 0))

    def until_full(self, told: Callable[[], object]) -> Path:
        """Leave no room until somebody says so; what takes it. Files that are removed once it was filled
        would make room again."""

        def full() -> object:
            fill(self._disk)
            return told()

        self.until(full, TRAINED_S)
        return fill(self._disk)

    def runs(self, who: str) -> bool:
        return self.processes[who].poll() is None


def check_log(fleet: Fleet) -> None:
    """Every round had both updates, and the log folds again to the same model."""
    journal = open_journal(fleet.home)
    entries = [decode_entry(logged.data) for logged in journal.entries()]
    journal.close()
    judged = [f for e in entries if isinstance(e, Turned) for f in e.facts if isinstance(f, UpdateJudged)]
    assert [f.folded for f in judged] == [True] * (2 * ROUNDS)
    assert len({(f.device, f.request) for f in judged}) == 2 * ROUNDS
    assert replay(system_ports(), fleet.home)["equal"]


def test_a_coordinator_waits_for_room_says_so_and_goes_on(
    tmp_path: Path, small_disk: Path, place: Place
) -> None:
    with OnSmallDisk(tmp_path / "fleet", small_disk, "coordinator", place) as fleet:
        fleet.run_all()
        fleet.submit(rounds=ROUNDS, deadline_s=600.0)
        fleet.until(lambda: fleet.rounds_done() >= 2, TRAINED_S)
        problem = f"the disk of {fleet.home}: No space left on device; free space, and work goes on"
        filler = fleet.until_full(lambda: fleet.status()["disk_problem"] == problem)
        assert problem in fleet.log("coordinator")
        stands = fleet.status()["journal_index"]
        fleet.stop("device-1")
        fleet.run("device-1")  # speaks up, and is not heard
        fleet.until(lambda: "connected to the broker" in fleet.log("device-1").rpartition("starts")[2])
        assert fleet.status()["journal_index"] == stands
        assert fleet.rounds_done() < ROUNDS
        filler.unlink()
        fleet.until(fleet.finished, TRAINED_S)
        assert fleet.status()["disk_problem"] == ""
        assert fleet.runs("coordinator"), "it was not started anew"
        for device in fleet.devices:
            fleet.stop(device)
        fleet.stop("coordinator")
        check_log(fleet)


def test_an_agent_waits_for_room_and_goes_on(tmp_path: Path, small_disk: Path, place: Place) -> None:
    with OnSmallDisk(tmp_path / "fleet", small_disk, "device-1", place) as fleet:
        fleet.run_all()
        fleet.submit(rounds=ROUNDS, deadline_s=600.0)
        fleet.until(lambda: fleet.rounds_done() >= 2, TRAINED_S)
        # Whatever it wanted to write first: its own state, or a chunk of the next model.
        filler = fleet.until_full(lambda: "([Errno 28]" in fleet.log("device-1"))
        assert str(fleet.agent_dir("device-1")) in fleet.log("device-1")
        assert not fleet.finished()
        filler.unlink()
        fleet.until(fleet.finished, TRAINED_S)
        assert fleet.runs("device-1"), "it was not started anew"
        for device in fleet.devices:
            fleet.stop(device)
        fleet.stop("coordinator")
        check_log(fleet)
