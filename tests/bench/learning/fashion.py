"""Fashion-MNIST on ten devices, Dirichlet(0.5): the small CNN of the task `vision` in PyTorch, two local
epochs a round, folded by the coordinator's own code; beside it the same training with all data in one place.

Takes minutes for each seed: what is left is told after each round.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edge_agent.tasks.vision import VisionTask
from edge_agent.tensors import layout_of, load, model_parts, subtract_base
from schemas.jobs import LocalSettings
from tests.bench.learning import direct, stats
from tests.bench.learning.digits import Floats
from tests.brokers import PACKAGES

CONFIG: Final[dict[str, Any]] = {"model": "cnn", "shape": [28, 28], "classes": 10, "held_out": 0}
LOCAL: Final = LocalSettings(epochs=2, batch_size=32, learning_rate=0.05)
TARGET: Final = 0.895
TEST_IMAGES: Final = "t10k-images-idx3-ubyte.gz"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``samples`` of the training images are used; the centralised run is the first seed's."""

    devices: int = 10
    alpha: float = 0.5
    rounds: int = 30
    seeds: Sequence[int] = (0, 1, 2)
    samples: int = 60_000


class Fashion:
    """A `direct.Fleet` of one seed. With one device and no skew it is the centralised run."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.devices = plan.devices
        self._plan = plan
        self._seed = seed
        self._task = VisionTask(CONFIG)
        folder = Path(PACKAGES["dataset-fashion-mnist"])
        self._train = self._task.load(folder)
        self._test = self._task.load(folder / TEST_IMAGES)
        self._parts = self._split()
        torch.manual_seed(seed)
        self._module = self._task.build()
        self._layout = layout_of(self._module, "fashion")

    def _split(self) -> list[torch.Tensor]:
        """Indices of each device's images, by Dirichlet for each class."""
        rng = np.random.default_rng([self._seed, 2])
        labels = self._train.y[: self._plan.samples].numpy()
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(self.devices)]
        for label in range(CONFIG["classes"]):
            members = rng.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(rng.dirichlet(np.full(self.devices, self._plan.alpha)))
            cuts = np.rint(ends[:-1] * len(members)).astype(np.intp)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        return [torch.from_numpy(np.concatenate(part)) for part in parts]

    @cached_property
    def _initial(self) -> Floats:
        return np.concatenate([part.numpy() for part in model_parts(self._module, self._layout)])

    def initial(self) -> Floats:
        return self._initial

    def train(
        self, base: Floats, devices: Sequence[int], round_: int, local: LocalSettings
    ) -> Iterable[tuple[Floats, int, int]]:
        for device in devices:
            model = bytearray(base.tobytes())
            load(self._module, self._layout, model)
            part = replace(self._train, train=self._parts[device], held_out=self._train.held_out[:0])
            seed = (1_000 * self._seed + round_) * 1_000 + device
            settings = msgspec.structs.replace(local, seed=seed)
            trained = self._task.train(self._module, part, settings, lambda: None)
            change = np.frombuffer(subtract_base(self._module, self._layout, model), "<f4")
            yield change, trained.samples, trained.steps

    def accuracy(self, model: Floats) -> float:
        load(self._module, self._layout, bytearray(model.tobytes()))
        return self._task.evaluate(self._module, self._test)["accuracy"]


def measure(plan: Plan | None = None) -> dict[str, Any]:
    """Curves of all seeds, and one of all the data in one place."""
    plan = plan or Plan()
    torch.set_num_threads(os.cpu_count() or 1)
    began_s = time.perf_counter()
    whole = (len(plan.seeds) + 1) * plan.rounds
    curves = []
    done = 0
    runs = [(plan, seed) for seed in plan.seeds]
    for each, seed in [*runs, (replace(plan, devices=1), plan.seeds[0])]:
        curve = []
        for accuracy in _curve(each, seed):
            curve.append(accuracy)
            if len(curve) > 1:
                done += 1
                left_min = (time.perf_counter() - began_s) / done * (whole - done) / 60
                where = f"{each.devices} devices, seed {seed}, round {len(curve) - 1}"
                print(f"{where}: {accuracy:.4f}; about {left_min:.0f} min left", flush=True)
        curves.append(curve)
    *federated, centralised = curves
    return {
        "plan": asdict(plan),
        "local": msgspec.to_builtins(LOCAL),
        "parameters": len(Fashion(plan, 0).initial()),
        "federated": federated,
        "centralised": centralised,
        "best": [max(curve) for curve in federated],
        "final": [curve[-1] for curve in federated],
        "rounds_to_target": [stats.first(curve, TARGET) for curve in federated],
        "centralised_best": max(centralised),
    }


def _curve(plan: Plan, seed: int) -> Iterator[float]:
    local = msgspec.to_builtins(LOCAL)
    asked = direct.job(seed, rounds=plan.rounds, cohort=plan.devices, local=local)
    return direct.accuracies(asked, Fashion(plan, seed))
