"""Seeded federations whose disks are full now and then: what waits goes on when there is room."""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.identity import IdentityError, load
from tests.sim.crypto import seeded
from tests.sim.federation import World, run
from tests.sim.invariants import check
from tests.sim.machine import SimMachine

SEEDS = 15
GROWING = ("append", "write_at", "open", "make_dir")
SOMETIMES = ("sync", "rename", "sync_dir")  # file systems differ


class FullDisks(World):
    """Every machine's disk is full for a part of the time, in turn with the others'."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.refused: Counter[str] = Counter()
        self.told: set[str] = set()

    async def weather(self) -> None:
        while not self._enrolled():  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(1.0)
        machines = {"coordinator": self.center, **self.devices}
        full = set[str]()
        for name, machine in machines.items():
            self._refuse_growth(machine, name, full)
        while not self.quiet:
            await asyncio.sleep(self.rng.expovariate(1 / 5))
            name = "coordinator" if self.rng.random() < 0.5 else self.rng.choice(list(machines))
            full.add(name)
            await asyncio.sleep(self.rng.expovariate(1 / 20))
            serving = self.serving
            if serving is not None and name == "coordinator":
                self.told.add((await serving.commands.handle({"op": "status"}))["disk_problem"])
            full.discard(name)

    def _enrolled(self) -> bool:
        """Whether every device knows that it is a member: enrolling on a full disk fails, and is told."""
        try:
            return all(load(machine.files, Path("/agent")).active for machine in self.devices.values())
        except (IdentityError, OSError):
            return False

    def _refuse_growth(self, machine: SimMachine, name: str, full: set[str]) -> None:
        before: Callable[[str, Path], None] | None = machine.files.on_change
        draw = random.Random(name)

        def refuse(what: str, path: Path) -> None:
            if name in full and (what in GROWING or (what in SOMETIMES and draw.random() < 0.1)):
                self.refused[name] += 1
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            if before is not None:
                before(what, path)

        machine.files.on_change = refuse


_played: dict[int, tuple[Counter[str], set[str]]] = {}


def played(seed: int) -> tuple[Counter[str], set[str]]:
    """What was refused, and what was told. A seed is played, and checked, once for all tests."""
    if seed in _played:
        return _played[seed]
    worlds: list[FullDisks] = []

    def make(seed: int) -> FullDisks:
        worlds.append(FullDisks(seed))
        return worlds[0]

    with seeded(seed):
        check(run(seed, make))
    return _played.setdefault(seed, (worlds[0].refused, worlds[0].told))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_waits_for_room_goes_on_and_nothing_is_lost(seed: int) -> None:
    played(seed)


def test_the_disks_do_fill_up_and_the_operator_is_told() -> None:
    refused, told = Counter[str](), set[str]()
    for seed in range(SEEDS):
        more, said = played(seed)
        refused += more
        told |= said
    assert refused["coordinator"] > 10
    assert refused.total() - refused["coordinator"] > 10
    assert "the disk of /fedbus: No space left on device; free space, and work goes on" in told
