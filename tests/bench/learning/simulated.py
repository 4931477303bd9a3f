"""A whole federation that really learns, on a virtual clock: the production coordinator and agents over a
memory broker, without faults. Its workers train the MLP of `digits`, encode and seal with production code;
how long that takes is drawn from a delay model (`delays`)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import msgspec
import numpy as np

from broker.bus import Bus, Credentials
from broker.journal import Journal
from broker.memory import MemoryBus
from broker.ports import Ports
from coordinator.entries import Turned, decode_entry
from coordinator.facts import JobEnded, UpdateJudged, VersionCommitted
from coordinator.keystore import KeyStore, load_identity
from coordinator.recovery import FOLDER
from coordinator.store import Store
from edge_agent.encoder import encode_delta
from edge_agent.sealer import open_model, seal_update
from schemas import work
from schemas.encodings import FLOAT32
from schemas.events import Update, Vector
from schemas.ids import COORDINATOR
from schemas.models import DELTA
from tests.bench.learning import digits
from tests.bench.learning.delays import MODELS, Draw
from tests.bench.learning.digits import Floats, Samples, Split
from tests.sim.crypto import seeded
from tests.sim.disk import SimFiles
from tests.sim.federation import World, run
from tests.sim.machine import WALL_START_S, SimOffload, SimProcess
from tests.sim.wire import Line
from tests.standin import spec
from tests.workers import Answer, layout

UNIT_S: Final = 100.0  # virtual: of a usual training; messages take no time


@dataclass(frozen=True)
class Learned:
    """One job's versions, the first one included: when (in units), and the model. ``folded`` updates are in
    them; all messages of the job came to ``up_bytes`` and ``down_bytes``, other devices' copies counted.
    ``slow`` are the numbers of the slowest devices."""

    units: list[float]
    models: list[Floats]
    folded: int
    rejected: int
    up_bytes: int
    down_bytes: int
    end: str
    slow: list[int]


class Learning(World):
    """One seed's federation; ``fields`` are of its job. No faults."""

    crash_chance = 0.0
    last_death = False
    poll_s = UNIT_S / 10
    worker_idle_s = 1e6

    def __init__(self, seed: int, split: Split, delay: str, fields: dict[str, Any], hidden: int) -> None:
        self.size = len(split.devices)
        self.split = split
        self.first = digits.initial(seed, hidden)
        self.fields = fields
        self.sent: dict[bool, int] = {True: 0, False: 0}  # bytes; True: by the coordinator
        self.counting = False
        self.pace = MODELS[delay](self.size, random.Random(f"{seed}:{delay}"))
        super().__init__(seed)
        self.quiet = True
        self.count = len(self.first)
        self.faults_end_s = 1e9

    def offload(self, rng: random.Random) -> SimOffload:
        return SimOffload()

    def makes(self) -> Answer:
        return _maker(self.center.ports, self.first)

    def worker(self, index: int, draw: random.Random) -> SimProcess:
        answer = trainer(self.devices[f"d{index}"].ports, self.split.devices[index], [self.seed, index])
        return _Paced(answer, self.pace.draws[index])

    def bus(self, name: str, topic: str) -> Bus:
        files = self.center.files if name == COORDINATOR else self.devices[name].files

        def told(payload: bytes) -> None:
            if self.counting:
                self.sent[name == COORDINATOR] += len(payload)

        return Line(MemoryBus(self.broker, Credentials(name), [topic]), files, told)

    def job(self) -> dict[str, object]:
        self.counting = True
        return spec(**self.fields)


class _Paced(SimProcess):
    """Takes as long for each answer as its device's pace says."""

    def __init__(self, answer: Callable[[bytes], bytes | None], draw: Draw) -> None:
        super().__init__(answer)
        self._draw = draw

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(UNIT_S * self._draw())
        await super().write(data)


def _maker(ports: Ports, first: Floats) -> Answer:
    def answer(data: bytes) -> bytes | None:
        order = work.decode_order(data[work.FRAME.size :])
        assert isinstance(order, work.Make)
        file = ports.files.open(Path(order.out), create=True)
        file.truncate(0)
        file.append(first.tobytes())
        file.sync()
        file.close()
        return work.encode(work.Made(layout=layout(order.job, len(first))))

    return answer


def trainer(ports: Ports, held: Samples, seed: list[int]) -> Answer:
    """What a device's worker answers: the update that training on ``held`` makes."""

    def answer(data: bytes) -> bytes | None:
        order = work.decode_order(data[work.FRAME.size :])
        assert isinstance(order, work.Train)
        base = np.frombuffer(open_model(ports.files, order), "<f4")
        rng = np.random.default_rng([*seed, order.request])
        ((change, steps),) = digits.train(base, [held], [order.local], [rng])
        delta = memoryview(bytearray(change.astype("<f4").tobytes()))
        content = encode_delta(ports.files, order, delta)
        update = Update(
            job=order.manifest.job,
            request=order.request,
            base=order.manifest.model,
            vectors=[Vector(DELTA, len(base))],
            samples=len(held.y),
            steps=steps,
            train_s=0.0,
            metrics={},
            evaluation={},
            content=sha256(content).digest(),
            encoding=msgspec.UNSET if order.encoding == FLOAT32 else order.encoding,
        )
        sealed = seal_update(ports, order, update, content)
        trained = work.Trained(
            clear=sealed.clear,
            seal=sealed.seal,
            samples=update.samples,
            steps=steps,
            train_s=0.0,
            metrics={},
            evaluation={},
        )
        return work.encode(trained)

    return answer


def learn(
    seed: int, split: Split, delay: str, fields: dict[str, Any], hidden: int = digits.HIDDEN
) -> Learned:
    """Play one job to its end; ``fields`` are of the job. Raises on a defect."""
    worlds: list[Learning] = []

    def make(seed: int) -> World:
        worlds.append(Learning(seed, split, delay, fields, hidden))
        return worlds[0]

    gc.disable()  # the garbage of a seed goes at its end
    gc.freeze()
    try:
        with seeded(seed), patch.dict(os.environ, clear=True):
            run(seed, make)
            return _told(worlds[0])
    finally:
        worlds.clear()
        gc.enable()
        gc.collect()


def _told(world: Learning) -> Learned:
    """What the log says, and the models that it names."""
    files: SimFiles = world.center.files
    identity = load_identity(files, world.home)
    store = Store(files, world.home, identity, KeyStore(files, world.home, world.center.entropy))
    journal = Journal.open(files, world.home / FOLDER, identity.federation, read_only=True)
    units: list[float] = []
    models: list[Floats] = []
    folded = rejected = 0
    end = ""
    for logged in journal.entries():
        entry = decode_entry(logged.data)
        for fact in entry.facts if isinstance(entry, Turned) else ():
            match fact:
                case VersionCommitted():
                    units.append((entry.at.wall_s - WALL_START_S) / UNIT_S)
                    models.append(np.frombuffer(store.model(fact.job, fact.model), "<f4"))
                case UpdateJudged():
                    folded += fact.folded
                    rejected += not fact.folded
                case JobEnded():
                    end = fact.state
    units = [each - units[0] for each in units]
    return Learned(units, models, folded, rejected, world.sent[False], world.sent[True], end, world.pace.slow)
