"""A larger federation, with every fault at once: what `make sim` plays, seed after seed.

Devices compute and answer as slowly as real ones do (``tests.sim.chances``), one of them lies
(``tests.sim.liar``). Messages are lost, doubled, overtaken and delayed; connections break; any party dies at
any await or operation of its disk, or its disk fails or is full; clocks are set wrong.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, ParamSpec, TypeVar, cast

from broker.bus import Bus, Credentials
from broker.faults import FaultPlan, Faults, FaultyBus
from broker.memory import MemoryBus
from broker.ports import Ports
from coordinator.facts import AnyFact
from coordinator.keystore import load_identity
from edge_agent.config import Config
from edge_agent.identity import IdentityError, load
from schemas.ids import COORDINATOR
from schemas.limits import RESEND_CAP_S
from tests.sim.chances import compute, link
from tests.sim.chaos import Mortal, Record, Steps
from tests.sim.federation import World
from tests.sim.invariants import facts_of
from tests.sim.laws import check_end
from tests.sim.liar import Liar
from tests.sim.machine import SimOffload, SimProcess
from tests.sim.party import Party
from tests.sim.virtual_loop import VirtualLoop
from tests.sim.wire import Laws, Line
from tests.workers import Answer, trainer

if TYPE_CHECKING:
    from tests.sim.members import Members

P = ParamSpec("P")
R = TypeVar("R")

COUNT = 2_100  # parameters: three chunks of the smallest size
CHUNK_BYTES = 4 * 1024
STEPS_APART = 8_000.0  # steps of all parties between two deaths at an await
TRAINING_S = 60.0  # usually
IDLE_S = RESEND_CAP_S  # a stretch in which nobody says anything is idle once it is longer
JUMP_S = 6 * 3600.0  # a token is good for four times as long
PARTITION_EVERY_S, PARTITION_S = 90.0, 10.0
FULL_EVERY_S, FULL_S = 200.0, 12.0
CLOCK_EVERY_S = 300.0


class Fleet(World):
    """One seed of it."""

    size = 21
    rounds = 6
    cohort = 17
    rule: ClassVar[dict[str, float]] = {"min_reports": 17, "over_selection": 1.1, "deadline_s": 480.0}
    buffered: ClassVar[dict[str, object]] = {"concurrency": 19, "staleness_max": 3}
    crash_chance = 0.0003
    failure_chance = 0.0003
    faults_end_s = 6_000.0
    poll_s = 10.0

    def __init__(self, seed: int, members: Members | None = None) -> None:
        self.record = Record(in_round=self._in_round)
        self.log: list[AnyFact] = []
        self.head = self.federation = b""
        self.active_s = 0.0
        self._spoke_s = 0.0
        self._draw = random.Random(f"{seed}:chances")
        self.trains_s = {f"d{i}": compute(self._draw, TRAINING_S)[1] for i in range(self.size)}
        self.links = {f"d{i}": link(self._draw) for i in range(self.size)}
        self.liar = f"d{self.size - 1}"
        self.laws = Laws(liars=frozenset({self.liar}))
        self._buses: list[FaultyBus] = []
        super().__init__(seed)
        self.count = COUNT
        self.device_chunk_bytes = CHUNK_BYTES
        self.last_death = self.rng.random() < 0.1
        self.plan = FaultPlan(Faults(drop=0.04, duplicate=0.04, hold=0.07, hold_s_max=5.0))
        self.steps = Steps(random.Random(f"{seed}:steps"), STEPS_APART)
        cast(VirtualLoop, asyncio.get_running_loop()).on_step = self.steps
        self._mortals: dict[str, Mortal] = {}
        if members is not None:
            members.settle(self)

    def offload(self, rng: random.Random) -> SimOffload:
        return Threads(rng)

    def worker(self, index: int, draw: random.Random) -> SimProcess:
        name = f"d{index}"
        return Worker(self.trains(self.devices[name].ports, index, draw), self.trains_s[name])

    def trains(self, ports: Ports, index: int, draw: random.Random) -> Answer:
        inline = index % 4 != 0
        return trainer(ports, self.count, draw, inline_max=4 * COUNT if inline else 0)

    def bus(self, name: str, topic: str) -> Bus:
        if not self.laws.ours:
            identity = load_identity(self.center.files, self.home)
            self.laws.ours, self.federation = identity.box.id, identity.federation
        inner = MemoryBus(self.broker, Credentials(name), [topic])
        plan = self.calm if self.quiet else self.plan
        bus = FaultyBus(inner, random.Random(self.rng.random()), plan, self.record.counts)
        self._buses.append(bus)
        if name == COORDINATOR:
            return Line(bus, self.center.files, self._spoken)
        files, slow, time = self.devices[name].files, self.links[name], asyncio.get_running_loop().time
        life = name, files.life

        def told(payload: bytes) -> None:
            self._spoken(payload)
            self.laws.said(life, payload)

        return Line(bus, files, told, lambda: slow(time()))

    def _spoken(self, payload: bytes) -> None:
        now_s = asyncio.get_running_loop().time()
        gap_s, self._spoke_s = now_s - self._spoke_s, now_s
        self.active_s += gap_s if gap_s <= IDLE_S else 0.0

    async def member(self, name: str, directory: Path, config: Config) -> None:
        if name != self.liar:
            await super().member(name, directory, config)
            return
        ports = self.devices[name].ports
        identity = load(ports.files, directory)
        bus = self.bus(name, identity.down_topic)
        await Liar(directory, ports, bus, identity, lambda lie: self.record.note("lie", lie)).run()

    def honest(self) -> list[str]:
        return [name for name in self.devices if name != self.liar]

    def party(self, name: str, program: Callable[[], Coroutine[None, None, None]]) -> Party:
        machine = self.center if name == COORDINATOR else self.devices[name]
        mortal = Mortal(
            name,
            machine,
            program,
            random.Random(f"{self.seed}:{name}"),
            self.crash_chance,
            self.power_cuts,
            record=self.record,
            failure_chance=self.failure_chance,
        )
        self._mortals[name] = mortal
        return mortal

    def arm(self, parties: Sequence[Party]) -> None:
        super().arm(parties)
        self.steps.quiet = False

    def calm_down(self, parties: Sequence[Party]) -> None:
        self.quiet = self.steps.quiet = True
        for party in parties:
            party.disarm()
        for mortal in self._mortals.values():
            mortal.full = False
        for bus in self._buses:
            bus.calm()
        for name in (COORDINATOR, *self.devices):
            self.broker.disconnect(name)  # whoever connects asks for what it may have missed
            self.broker.restore(name)
        super().calm_down(parties)

    def _in_round(self) -> bool:
        if self.serving is None:
            return False
        jobs = self.serving.ledger.state.jobs.values()
        return any(job.round is not None and not job.round.closed for job in jobs)

    async def weather(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._partitions(), name="partitions")
            tasks.create_task(self._full_disks(), name="full disks")
            tasks.create_task(self._clocks(), name="clocks")

    async def _stormy(self, rng: random.Random, every_s: float) -> bool:
        """Wait for the next fault of a kind; whether there still is to be one."""
        await asyncio.sleep(rng.expovariate(1 / every_s))
        return not self.quiet

    async def _partitions(self) -> None:
        rng = random.Random(f"{self.seed}:partitions")
        while await self._stormy(rng, PARTITION_EVERY_S):
            name = COORDINATOR if rng.random() < 0.25 else rng.choice(list(self.devices))
            self.record.note("partition", name)
            self.broker.disconnect(name)
            await asyncio.sleep(rng.expovariate(1 / PARTITION_S))
            self.broker.restore(name)

    async def _full_disks(self) -> None:
        rng = random.Random(f"{self.seed}:full disks")
        while await self._stormy(rng, FULL_EVERY_S):
            mortal = self._mortals[COORDINATOR if rng.random() < 0.4 else rng.choice(list(self.devices))]
            if mortal.name != COORDINATOR and not self._enrolled(mortal):
                continue  # enrolling on a full disk fails, and says so
            mortal.full = True
            self.record.note("full disk", mortal.name)
            await asyncio.sleep(rng.expovariate(1 / FULL_S))
            mortal.full = False

    def _enrolled(self, mortal: Mortal) -> bool:
        try:
            return load(mortal.machine.files, Path("/agent")).active
        except (IdentityError, OSError):
            return False

    async def _clocks(self) -> None:
        rng = random.Random(f"{self.seed}:clocks")
        while await self._stormy(rng, CLOCK_EVERY_S):
            name = rng.choice((COORDINATOR, *self.devices))
            machine = self._mortals[name].machine
            machine.clock.wall_offset_s += rng.uniform(-JUMP_S, JUMP_S) / 4
            self.record.note("clock jump", name)

    def decided(self) -> list[AnyFact]:
        """All facts of the log as it is now."""
        return facts_of(self.center.files, self.home)

    async def finish(self) -> None:
        self.log = await check_end(self)


class Threads(SimOffload):
    """Now and then takes a while, before or after the work, so that others act in between."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        draw = self._rng.random()
        await asyncio.sleep(self._rng.expovariate(1 / 0.04) if draw < 0.1 else 0)
        result = function(*args, **kwargs)
        if draw > 0.9:
            await asyncio.sleep(self._rng.expovariate(1 / 0.04))
        return result


class Worker(SimProcess):
    """Takes as long for each answer as its device's model says."""

    def __init__(self, answer: Callable[[bytes], bytes | None], takes: Callable[[float], float]) -> None:
        super().__init__(answer)
        self._takes = takes

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(self._takes(asyncio.get_running_loop().time()))
        await super().write(data)
