"""A recorded run of the digits in which one device trains on flipped labels: real coordinator, real task.

The devices speak the protocol by hand and train in this process, so that ten runs take seconds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from broker.system import system_ports
from coordinator.app import Coordinator
from coordinator.demo.data import CONFIG, FEDERATED, make_digits
from coordinator.keystore import KeyStore
from coordinator.store import Store
from edge_agent.tasks.vision import VisionTask
from edge_agent.tensors import load, subtract_base
from edge_agent.worker import Worker
from schemas import events as e
from schemas import work
from schemas.models import Layout
from tests.sim.machine import SimProcess, SimSpawn
from tests.standin import Federation, StandIn, spec

JOB = "digits"
DEVICES = 5
CLASSES = 10


@dataclass(frozen=True)
class Flipped:
    """What was recorded in ``home``; ``device`` is the one whose labels are flipped."""

    home: Path
    device: str
    test: Path


class _Federation(Federation):
    """Its worker is the real one, in this process."""

    def _new(self) -> Coordinator:
        ports = self.ports

        def answer(data: bytes) -> bytes:
            order = work.decode_order(data[work.FRAME.size :])
            return work.encode(Worker(ports, _Nobody()).carry_out(order))

        self.ports = replace(ports, spawn=SimSpawn(lambda argv, env: SimProcess(answer)))
        return super()._new()


class _Nobody:
    """No parent that could go away."""

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:  # select's
        del timeout
        return []


def record(folder: Path, seed: int, rounds: int, alpha: float = 0.3) -> Flipped:
    """Train for some rounds; the flipped device is another for each seed."""
    data = make_digits(folder / "data", DEVICES, alpha, seed)
    bad = seed % DEVICES
    with np.load(data.train[bad]) as arrays:
        x, y = arrays["x"], arrays["y"]
    np.savez(data.train[bad], x=x, y=CLASSES - 1 - y)
    asyncio.run(_record(folder / "home", data.train, seed, rounds))
    return Flipped(folder / "home", f"device-{bad + 1}", data.test)


async def _record(home: Path, paths: list[Path], seed: int, rounds: int) -> None:
    fed = _Federation(home, system_ports(), 0)
    store = Store(fed.ports.files, home, fed.identity, KeyStore(fed.ports.files, home, fed.ports.entropy))
    async with asyncio.TaskGroup() as tasks:
        fed.start(tasks)
        devices = []
        for number in range(1, len(paths) + 1):
            device = await fed.device(f"device-{number}")
            await device.report("vision")
            devices.append(device)
        many = {"rounds": rounds, "cohort": len(paths), "min_reports": len(paths)}
        job = spec(JOB, config=CONFIG, local=msgspec.to_builtins(FEDERATED), seed=seed, task="vision", **many)
        await fed.command("submit", spec=job)
        for round_ in range(1, rounds + 1):
            for device, path in zip(devices, paths, strict=True):
                await _train(store, device, path, seed, round_)
        await devices[0].next(e.JobFinished)  # said once the last version is durable
        for device in devices:
            await device.close()
        await fed.stop()


async def _train(store: Store, device: StandIn, path: Path, seed: int, round_: int) -> None:
    request = await device.next(e.TrainingRequest)
    while request.round < round_:  # sent again, because this process trained in the meantime
        request = await device.next(e.TrainingRequest)
    # Where a device would pull chunk by chunk.
    layout, model = store.layout(JOB), bytearray(store.model(JOB, request.base))
    task = VisionTask(CONFIG)
    module, samples = task.build(), task.load(path)
    load(module, layout, model)
    local = msgspec.structs.replace(FEDERATED, seed=1_000 * seed + request.round)
    trained = task.train(module, samples, local, lambda: None)
    delta = np.frombuffer(subtract_base(module, layout, model), "<f4").copy()
    await device.answer(request, delta, samples=trained.samples)


def evaluate(test: Path, layout: Layout, model: bytes) -> dict[str, float]:
    """Loss and accuracy on all of a data set, in this process."""
    task = VisionTask({**CONFIG, "held_out": 0})
    module = task.build()
    load(module, layout, bytearray(model))
    return task.evaluate(module, task.load(test))
