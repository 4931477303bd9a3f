"""What the demonstration's federated model is compared with, on the test set that no device saw.

Local only: each device alone, from the same initial parameters, for as many passes over its data as it made
in the federation. Centralised: all devices' samples in one place, for as many optimiser steps as all devices
took together. Both use the same optimiser with a learning rate of their own (`data`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from broker.ports import Ports
from broker.worker import WorkerFailed, WorkerLink
from coordinator.cli.output import Failed
from coordinator.demo.data import (
    CENTRALISED_LEARNING_RATE,
    CONFIG,
    FEDERATED,
    LOCAL_ONLY_LEARNING_RATE,
    DemoData,
)
from coordinator.report.gather import Comparison
from schemas import work
from schemas.jobs import LocalSettings
from schemas.models import Layout

TASK = "vision"
PASSES_MAX = 1_000_000  # no bound: the centralised model trains until its steps are used up


@dataclass(frozen=True, slots=True)
class Training:
    """The federated run: files of the model's versions, from version 0, and the steps all devices took."""

    layout: Layout
    versions: list[Path]
    rounds: int
    steps: int
    seed: int


async def measure(ports: Ports, folder: Path, data: DemoData, training: Training) -> Comparison:
    """Train the baselines and evaluate everything, in two processes; drafts go to ``folder``.

    Raises `Failed`.
    """
    federated: list[float] = []
    centralised: list[float] = []
    local_only: list[float] = []

    async def first() -> None:
        async with WorkerLink(ports, folder / "baselines-1.log") as link:
            bench = _Bench(link, data, training, folder)
            federated.extend([await bench.evaluate(path) for path in training.versions])
            settings = replace(
                FEDERATED,
                learning_rate=CENTRALISED_LEARNING_RATE,
                epochs=PASSES_MAX,
                steps_max=training.steps,
                seed=training.seed,
            )
            centralised.append(await bench.fit_and_evaluate(data.everything, settings))

    async def second() -> None:
        async with WorkerLink(ports, folder / "baselines-2.log") as link:
            bench = _Bench(link, data, training, folder)
            for number, path in enumerate(data.train):
                settings = replace(
                    FEDERATED,
                    learning_rate=LOCAL_ONLY_LEARNING_RATE,
                    epochs=training.rounds * FEDERATED.epochs,
                    seed=training.seed + number,
                )
                local_only.append(await bench.fit_and_evaluate(path, settings))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(first(), name="federated and centralised")
        tasks.create_task(second(), name="local only")
    return Comparison(federated, local_only, centralised[0])


class _Bench:
    def __init__(self, link: WorkerLink, data: DemoData, training: Training, folder: Path) -> None:
        self._link = link
        self._data = data
        self._training = training
        self._folder = folder

    async def evaluate(self, model: Path) -> float:
        order = work.Evaluate(
            task=TASK,
            config=CONFIG,
            model=str(model),
            layout=self._training.layout,
            dataset=str(self._data.test),
            whole=True,
        )
        try:
            reply = await self._link.call(order)
        except WorkerFailed as error:
            raise Failed(f"evaluating {model.name}: {error}") from error
        if isinstance(reply, work.Problem):
            raise Failed(f"evaluating {model.name}: {reply.text}")
        return reply.metrics["accuracy"]

    async def fit_and_evaluate(self, dataset: Path, settings: LocalSettings) -> float:
        out = self._folder / f"{dataset.stem}.model"
        order = work.Fit(
            task=TASK,
            config=CONFIG,
            model=str(self._training.versions[0]),
            layout=self._training.layout,
            dataset=str(dataset),
            local=settings,
            out=str(out),
        )
        try:
            reply = await self._link.call(order)
        except WorkerFailed as error:
            raise Failed(f"training the baseline on {dataset.name}: {error}") from error
        if isinstance(reply, work.Problem):
            raise Failed(f"training the baseline on {dataset.name}: {reply.text}")
        return await self.evaluate(out)
