"""A whole federation on a virtual clock: the production coordinator and agents, a memory broker between.

Only the worker process is replaced, by one that draws an update and seals it with the production code.
Faults come from the seed: messages lost, doubled, held back; any party killed or cut from power, between
any two operations of its disk. `run` plays one seed and returns what the invariants are checked on.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from broker.bus import Bus, Credentials
from broker.faults import FaultPlan, Faults, FaultyBus
from broker.memory import MemoryBroker, MemoryBus
from broker.ports import Ports, write_atomic
from coordinator.app import Coordinator
from coordinator.broker_admin.access import ListedAccess, UnmanagedUsers
from coordinator.config import Config as CoordinatorConfig
from coordinator.config import load_config
from coordinator.keystore import load_identity
from coordinator.setup import init
from coordinator.state import ENDED_JOB
from coordinator.turn import CommandRefused
from edge_agent.app import Agent
from edge_agent.config import Config, Policy
from edge_agent.enrol import enrol, prepare
from edge_agent.identity import load
from edge_agent.kept import Shelf
from edge_agent.ledger import RequestState, read_ledger
from edge_agent.lives import live
from edge_agent.outbox import DIR, SEALED_FILE
from schemas import topics
from schemas.enrolment import Token, token_from_text
from schemas.ids import COORDINATOR
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN, CHUNK_BYTES_MAX
from tests.sim import virtual_loop
from tests.sim.machine import SimEntropy, SimMachine, SimOffload, SimProcess, SimSpawn
from tests.sim.party import Party, SlowOffload, SlowProcess
from tests.standin import TASK, spec
from tests.workers import Answer, maker, trainer

PATIENCE_S = 40_000.0
DATA = "/data.npz"
AGENT = Path("/agent")
OUTBOX = AGENT / DIR


@dataclass
class Outcome:
    """What is left after a run: the machines with their disks, and what happened on the way."""

    coordinator: SimMachine
    directory: Path
    devices: dict[str, SimMachine]
    crashes: Counter[str]
    receipted: dict[str, set[tuple[str, int]]]  # by device: what it let go of, so it had the receipt
    rounds: int
    virtual_s: float


class World:
    """One seed's federation. ``power_cuts`` is the part of the crashes that loses what was not synced."""

    size = 5
    rounds = 4
    cohort = 3
    rule: ClassVar[dict[str, float]] = {"min_reports": 2, "over_selection": 1.3, "deadline_s": 120.0}
    buffered: ClassVar[dict[str, object]] = {"concurrency": 4, "staleness_max": 2}  # of every fourth seed
    crash_chance = 0.004  # per operation of a disk
    power_cuts = 0.5
    faults_end_s = 1_500.0  # virtual; from then on everything must come to its end
    poll_s = 1.0
    last_death = True  # of every party, when the faults end
    worker_idle_s = 30.0  # of all agents

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.count = self.rng.choice((50, 80_000))  # inline, or five chunks
        self.broker, self.home = MemoryBroker(), Path("/fedbus")
        self.plan = FaultPlan(
            Faults(drop=0.08, duplicate=0.08, hold=0.1, hold_s_max=5.0),
            Faults(drop=0.04, duplicate=0.04, hold=0.05, hold_s_max=2.0),
        )
        self.calm, self.quiet = FaultPlan(), False
        self.device_chunk_bytes = CHUNK_BYTES_MAX
        spawn = SimSpawn(lambda argv, env: SimProcess(self.makes()))
        offload = self.offload(random.Random(f"{seed}:offload"))
        self.center = SimMachine(spawn=spawn, offload=offload, entropy=SimEntropy(seed))
        self.devices = {f"d{i}": self._device_machine(seed, i) for i in range(self.size)}
        self.receipted: dict[str, set[tuple[str, int]]] = {name: set() for name in self.devices}
        self.serving: Coordinator | None = None
        self.tokens: dict[str, Token] = {}  # if there are any, the devices are members already

    def _device_machine(self, seed: int, index: int) -> SimMachine:
        draw = random.Random(f"{seed}:{index}")
        spawn = SimSpawn(lambda argv, env: self.worker(index, draw))
        offload = self.offload(draw)
        machine = SimMachine(spawn=spawn, offload=offload, entropy=SimEntropy(seed * 1_000 + index + 1))
        machine.files.watch = partial(self._watch, f"d{index}")
        write_atomic(machine.files, Path(DATA), b"data")
        return machine

    def offload(self, rng: random.Random) -> SimOffload:
        """How a machine does what takes a while."""
        return SlowOffload(rng)

    def makes(self) -> Answer:
        """What the coordinator's worker answers."""
        return maker(self.center.ports, self.count)

    def worker(self, index: int, draw: random.Random) -> SimProcess:
        """What trains on a device."""
        return SlowProcess(self.trains(self.devices[f"d{index}"].ports, index, draw), draw)

    def trains(self, ports: Ports, index: int, draw: random.Random) -> Answer:
        """What the workers of a device answer."""
        return trainer(ports, self.count, draw)

    def _watch(self, name: str, what: str, path: Path) -> None:
        """A device lets go of an update that was made: it has a receipt of it, or it loses work."""
        if what == "remove" and path.parent == OUTBOX and self.devices[name].files.exists(path / SEALED_FILE):
            job, number, _ = path.name.split(".")
            self.receipted[name].add((job, int(number)))

    def bus(self, name: str, topic: str) -> Bus:
        inner = MemoryBus(self.broker, Credentials(name), [topic])
        plan = self.calm if self.quiet else self.plan
        return FaultyBus(inner, random.Random(self.rng.random()), plan)

    async def weather(self) -> None:
        """What befalls connections, until it is to be quiet."""

    async def serve(self) -> None:
        ports = self.center.ports
        identity = load_identity(ports.files, self.home)
        bus = self.bus(COORDINATOR, topics.all_up(identity.federation))
        config = load_config(ports.files, self.home, {})
        access = ListedAccess(ports, self.home, UnmanagedUsers())
        self.serving = Coordinator(self.home, config, identity, ports, bus, access)
        try:
            await self.serving.run(listen=False)
        finally:
            self.serving = None

    def device_program(self, name: str, token: Token) -> Callable[[], Coroutine[None, None, None]]:
        data, policy, idle_s = {TASK: DATA}, Policy(tasks=[TASK]), self.worker_idle_s
        config = Config(policy=policy, data=data, worker_idle_s=idle_s, chunk_bytes=self.device_chunk_bytes)

        async def program() -> None:
            await self.enrol(name, token)
            await self.member(name, AGENT, config)

        return program

    async def enrol(self, name: str, token: Token) -> None:
        """Have a device join, unless it did."""
        ports = self.devices[name].ports
        identity = prepare(ports, AGENT, token)
        if not identity.active:
            await enrol(ports, AGENT, identity, self.bus(name, identity.down_topic))

    async def member(self, name: str, directory: Path, config: Config) -> None:
        """What an enrolled device does."""
        ports = self.devices[name].ports

        def agent() -> Agent:
            newest = load(ports.files, directory)
            bus = self.bus(name, newest.down_topic)
            return Agent(directory, config, ports, bus, newest, installed=lambda: [TASK])

        await live(agent)

    def honest(self) -> list[str]:
        """Devices that do what they should."""
        return list(self.devices)

    def party(self, name: str, program: Callable[[], Coroutine[None, None, None]]) -> Party:
        """One who may die."""
        machine = self.center if name == COORDINATOR else self.devices[name]
        draw = random.Random(f"{self.seed}:{name}")
        return Party(name, machine, program, draw, self.crash_chance, self.power_cuts)

    def calm_down(self, parties: Sequence[Party]) -> None:
        """The faults end, with the death of everybody."""
        self.quiet = True
        for party in parties if self.last_death else ():
            party.disarm()
            party.machine.halt()  # the last death: from here on without faults
            party.died.set()

    def remind(self) -> None:
        """It has been calm for a moment."""

    async def finish(self) -> None:
        """All is done, and the coordinator still serves."""

    def arm(self, parties: Sequence[Party]) -> None:
        """From now on they may die."""
        for party in parties:
            party.arm()

    def job(self) -> dict[str, object]:
        """What is trained."""
        fields: dict[str, Any] = {"rounds": self.rounds, "cohort": self.cohort} | self.rule
        fields["server"] = {"optimiser": ("fedadam", "fedavg")[self.seed % 2]}
        if self.seed % 4 == 3:
            fields["asynchronous"] = self.buffered
            del fields["over_selection"]
        return spec(chunk_bytes=CHUNK_BYTES_CHOSEN_MIN, **fields)


async def invite(world: World) -> dict[str, Token]:
    """A token for each device."""
    return {name: token_from_text(await _command(world, "invite", device=name)) for name in world.devices}


async def _play(world: World) -> Outcome:
    loop = asyncio.get_running_loop()
    if not world.tokens:
        init(world.center.ports, world.home, CoordinatorConfig(broker="memory:sim"))
    parties = [world.party(COORDINATOR, world.serve)]
    async with asyncio.TaskGroup() as tasks:
        lives = [tasks.create_task(parties[0].live(), name="coordinator")]
        tokens = world.tokens or await invite(world)
        for name, token in tokens.items():
            parties.append(world.party(name, world.device_program(name, token)))
            lives.append(tasks.create_task(parties[-1].live(), name=name))
        await _command(world, "submit", spec=world.job())
        world.arm(parties)
        tasks.create_task(world.weather(), name="weather")
        async with asyncio.timeout(PATIENCE_S):
            while loop.time() < world.faults_end_s and not _done(world):  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(world.poll_s)
            world.calm_down(parties)
            await asyncio.sleep(world.poll_s)
            world.remind()
            while not _settled(world):  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(world.poll_s)
            await world.finish()
        virtual_s = loop.time()
        for life in lives:
            life.cancel()
    crashes: Counter[str] = Counter()
    for party in parties:
        crashes[party.name.rstrip("0123456789")] += party.crashes.total()
    return Outcome(world.center, world.home, world.devices, crashes, world.receipted, world.rounds, virtual_s)


async def _command(world: World, op: str, **fields: object) -> str:
    """As an operator does: again, if the coordinator was not there."""
    while True:
        await asyncio.sleep(1.0)
        if world.serving is not None:
            try:
                answer = await world.serving.commands.handle({"op": op} | fields)
            except CommandRefused:
                continue
            return str(answer.get("token", ""))


def _done(world: World) -> bool:
    if world.serving is None:
        return False
    jobs = world.serving.ledger.state.jobs.values()
    return bool(jobs) and all(job.state in ENDED_JOB for job in jobs)


def _settled(world: World) -> bool:
    """The job is over, no device holds an update without a receipt, or waits for the last version."""
    try:
        return _done(world) and not any(waits(world.devices[name]) for name in world.honest())
    except OSError:
        return False  # one is about to be started


def waits(machine: SimMachine) -> bool:
    """Whether a device holds work without a receipt, or has no last version of a job that it knows."""
    ledger = read_ledger(machine.files, AGENT)
    shelf = Shelf(machine.files, machine.clock, AGENT)
    held = (RequestState.ACCEPTED, RequestState.MADE)
    return any(record.state in held for record in ledger.requests) or not all(
        shelf.has_last(name) for name, job in ledger.jobs.items() if job.wanted
    )


def run(seed: int, make: Callable[[int], World] = World) -> Outcome:
    """Play ``seed`` to its end. Raises on a defect, a deadlock, or when it does not come to an end."""

    async def play() -> Outcome:
        return await _play(make(seed))

    return virtual_loop.run(play, max_virtual_s=2 * PATIENCE_S)
