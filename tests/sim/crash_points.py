"""Every point at which a program touches the world: it is killed at each in turn, and started again.

A point is an operation of the disk (write, sync, rename, remove, …) or an acknowledgement to the broker, and
the death comes just before it: what was done up to there stays (``kill``), or only what the disk had made
durable, the rest torn (``power``), or one of the two by chance and then a second death, soon after the new
start (``twice``). The federation is small and without other faults: two rounds, updates that travel whole and
in chunks; and the same with buffers in place of rounds (`BUFFERED`). `points` plays it uncrashed and lists
them; `crashed` plays it with a death.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.bus import Bus
from broker.faults import FaultPlan
from broker.ports import Ports
from coordinator.keystore import load_identity
from coordinator.replay import first_difference, replay
from coordinator.verify import verify
from schemas.ids import COORDINATOR
from tests.sim.crypto import seeded
from tests.sim.federation import Outcome, World, run
from tests.sim.invariants import check
from tests.sim.machine import SimMachine
from tests.sim.party import Party
from tests.sim.wire import Laws, Line
from tests.workers import Answer, trainer

COUNT: Final = 3_000  # parameters: three chunks of the smallest size
CHUNK_BYTES: Final = 4 * 1024
DEVICE: Final = "d1"  # its updates travel in chunks
BUFFERED: Final = "coordinator, asynchronous"
MORTALS: Final = (COORDINATOR, DEVICE, BUFFERED)
ENDS: Final = ("kill", "power", "twice")
POWER_CUTS: Final = {"kill": 0.0, "power": 1.0, "twice": 0.5}
SECOND_MAX: Final = 25  # points between two deaths
KINDS: Final = {
    "append": "write",
    "write_at": "write",
    "truncate": "write",
    "sync": "sync",
    "sync_dir": "sync",
    "open": "create",
    "make_dir": "create",
    "rename": "rename",
    "remove": "remove",
    "ack": "ack",
}


@dataclass
class Points:
    """Counts what one machine does; it dies before each of ``deaths``, counted from 1."""

    machine: SimMachine
    deaths: tuple[int, ...] = ()
    seen: list[str] = field(default_factory=list)
    party: Party | None = None

    def __call__(self, what: str, path: Path) -> None:
        if self.party is None:
            return
        self.seen.append(what)
        if len(self.seen) in self.deaths:
            self.party.crashes[what] += 1
            self.machine.halt()
            self.party.died.set()
            raise OSError(f"killed at {what} of {path.name}")


class Small(World):
    """Three devices, two rounds, and a death of ``mortal`` at the point ``at``, unless that is 0."""

    size = 3
    rounds = 2
    last_death = False

    def __init__(self, mortal: str, at: int, end: str) -> None:
        super().__init__(0)
        self.count = COUNT
        self.plan = FaultPlan()
        self.device_chunk_bytes = CHUNK_BYTES
        self.power_cuts = POWER_CUTS[end]
        self.mortal = mortal
        self.draw = random.Random(f"{at}:{end}")
        second = [at + self.draw.randint(1, SECOND_MAX)] if end == "twice" else []
        self.dies = DEVICE if mortal == DEVICE else COORDINATOR
        machine = self.devices[DEVICE] if mortal == DEVICE else self.center
        self.laws = Laws()
        self.points = Points(machine, (at, *second) if at else ())
        machine.files.on_change = self.points

    def trains(self, ports: Ports, index: int, draw: random.Random) -> Answer:
        return trainer(ports, self.count, draw, inline_max=4 * COUNT if index == 0 else 0)

    def bus(self, name: str, topic: str) -> Bus:
        if not self.laws.ours:
            self.laws.ours = load_identity(self.center.files, self.home).box.id
        bus = super().bus(name, topic)
        if name == COORDINATOR:
            line = Line(bus, self.center.files)
        else:
            files = self.devices[name].files
            life = name, files.life
            line = Line(bus, files, lambda payload: self.laws.said(life, payload))
        if name == self.dies:
            line.acks = lambda: self.points("ack", Path("delivery"))
        return line

    def job(self) -> dict[str, object]:
        asked = super().job()
        if self.mortal == BUFFERED:
            del asked["over_selection"]
            asked |= {"cohort": 2, "asynchronous": {"concurrency": 3}}
        return asked

    def arm(self, parties: Sequence[Party]) -> None:
        (self.points.party,) = (party for party in parties if party.name == self.dies)
        self.points.party.rng = self.draw


def points(mortal: str) -> list[str]:
    """What ``mortal`` does in an uncrashed run, in order: operations of its disk and acknowledgements."""
    world, outcome = _play(mortal, 0, "kill")
    _check(outcome)
    return world.points.seen


def crashed(mortal: str, at: int, end: str) -> str:
    """Play it with a death of ``mortal`` at the point ``at`` (from 1), and return what the point is.

    Raises if anything is lost or doubled, or if the last model is not what the log folds to.
    """
    world, outcome = _play(mortal, at, end)
    assert outcome.crashes.total() >= 1, f"there is no point {at}"
    _check(outcome)
    assert not world.laws.problems, world.laws.problems
    return world.points.seen[at - 1]


def die(mortal: str, end: str, at: int) -> str:
    """`crashed`; what went wrong, or nothing."""
    try:
        crashed(mortal, at, end)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
        return f"{mortal}, {end} at point {at}: {type(error).__name__}: {error}"
    return ""


def _play(mortal: str, at: int, end: str) -> tuple[Small, Outcome]:
    worlds: list[Small] = []

    def make(seed: int) -> Small:
        worlds.append(Small(mortal, at, end))
        return worlds[0]

    with seeded(0):
        outcome = run(0, make)
    return worlds[0], outcome


def _check(outcome: Outcome) -> None:
    check(outcome)
    result = replay(outcome.coordinator.ports, outcome.directory)
    assert result["equal"], first_difference(outcome.directory, result)
    files, home = outcome.coordinator.files, outcome.directory
    damage = verify(files, home, load_identity(files, home).federation, durable=0).damage
    assert not damage, damage


def by_kind(seen: Sequence[str]) -> Counter[str]:
    """How many points there are of each kind."""
    return Counter(KINDS[what] for what in seen)
