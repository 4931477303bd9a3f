"""For tests of your own against recordings of your federation. Agents import nothing of it; docs/testing.md.

`coordinator.pytest_plugin` has the same as fixtures for pytest.
"""

from __future__ import annotations

import random
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.bus import Credentials
from broker.faults import FaultPlan, FaultyBus
from broker.memory import MemoryBroker, MemoryBus
from broker.system import system_ports
from coordinator.keystore import load_identity
from coordinator.recovery import open_whole, recover
from coordinator.replay import first_difference, replay
from coordinator.state import State
from coordinator.verify import verify

RECORDING: Final = Path(__file__).with_name("recording.zip")
"""A small federation under throw-away keys: three devices; one job finished, one cancelled, one failed."""


class ManualClock:
    """A `broker.ports.Clock` that stands still until it is told to go on."""

    def __init__(self, wall_s: float = 1_700_000_000.0) -> None:
        self._run_s, self._wall_s = 0.0, wall_s

    def monotonic_s(self) -> float:
        return self._run_s

    def wall_s(self) -> float:
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Let time pass. ValueError for a negative one: clocks like this never go back."""
        if seconds < 0:
            raise ValueError(f"time does not pass by {seconds} s")
        self._run_s += seconds
        self._wall_s += seconds


class Buses:
    """Buses of one broker in memory, with faults that come from a seed: equal calls, equal faults."""

    def __init__(self, seed: int = 0) -> None:
        self.broker = MemoryBroker()
        self._seed = seed

    def __call__(
        self, name: str, subscriptions: Iterable[str] = (), plan: FaultPlan | None = None
    ) -> FaultyBus:
        """The bus of the session ``name``, not entered; without a plan nothing happens to its messages."""
        bus = MemoryBus(self.broker, Credentials(name), subscriptions)
        return FaultyBus(bus, random.Random(f"{self._seed}:{name}"), plan or FaultPlan())


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a recording says. ``versions`` are the models' digests by job, as they were computed again."""

    directory: Path
    state: State
    versions: dict[str, list[str]]


def unpack(recording: Path, target: Path) -> Path:
    """A copy of a recording, a state directory or a ZIP file of one, that a test may change."""
    if recording.is_dir():
        shutil.copytree(recording, target, ignore=shutil.ignore_patterns("*.sock"))
    else:
        zipfile.ZipFile(recording).extractall(target)
    return target


def assert_replays(journal: Path) -> dict[str, Any]:
    """Every byte of the state directory ``journal`` is as it was written, and every model follows from it.

    Returns what `coordinator.replay.replay` found. AssertionError names the first difference.
    """
    ports = system_ports()
    found = verify(ports.files, journal, load_identity(ports.files, journal).federation)
    if found.damage:
        raise AssertionError(str(found.damage[0]))
    result = replay(ports, journal)
    difference = first_difference(journal, result)
    if difference:
        raise AssertionError(difference)
    return result


def replayed(journal: Path) -> Replayed:
    """The coordinator that the state directory ``journal`` tells of, its models computed again.

    Raises AssertionError as `assert_replays`.
    """
    result = assert_replays(journal)
    files = system_ports().files
    log, base = open_whole(files, journal, load_identity(files, journal).federation)
    try:
        state = recover(log, base).state
    finally:
        log.close()
    versions = {job: [one["computed"] for one in of] for job, of in result["jobs"].items()}
    return Replayed(journal, state, versions)
