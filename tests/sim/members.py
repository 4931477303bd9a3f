"""Fleets whose devices are members already: they enrol once in a process, undisturbed, and each seed begins
with copies of their disks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache

from broker.faults import FaultPlan
from coordinator.config import Config
from coordinator.setup import init
from schemas.enrolment import Token
from tests.sim.crypto import seeded
from tests.sim.disk import SimFiles
from tests.sim.federation import invite
from tests.sim.fleet import Fleet
from tests.sim.virtual_loop import run

SEED = 1_000_000_007  # beyond all that is played: what these devices draw, no other draws


@dataclass(frozen=True, slots=True)
class Members:
    """The disks of a fleet after everybody has joined."""

    tokens: dict[str, Token]
    center: SimFiles
    devices: dict[str, SimFiles]

    def settle(self, world: Fleet) -> None:
        """Let ``world`` go on from there."""
        world.tokens = dict(self.tokens)
        world.center.files.fill(self.center)
        for name, files in self.devices.items():
            world.devices[name].files.fill(files)


@cache
def members() -> Members:
    """The same in each process. Not from within a running loop, nor while `seeded` holds."""
    with seeded(SEED):
        return run(_enrol)


async def _enrol() -> Members:
    world = Fleet(SEED)
    world.plan = FaultPlan()
    init(world.center.ports, world.home, Config(broker="memory:sim"))
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(world.serve(), name="coordinator")
        tokens = await invite(world)
        for name, token in tokens.items():
            await world.enrol(name, token)
        serving.cancel()
    return Members(tokens, world.center.files, {name: m.files for name, m in world.devices.items()})
