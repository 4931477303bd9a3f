"""Tasks that misbehave, for tests of the worker and its link."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_agent.tasks import Config, LocalSettings, Pace, TaskError, Trained
from schemas.errors import Malformed


@dataclass
class Nothing:
    train_samples: int = 1


class Plain:
    """A model of ``size`` parameters and no data."""

    def __init__(self, config: Config) -> None:
        self.size = int(str(config.get("size", 4)))

    def build(self) -> nn.Module:
        return nn.Linear(self.size, 1, bias=False)

    def load(self, path: Path) -> Nothing:
        return Nothing()

    def train(self, model: nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        pace()
        return Trained(samples=1, steps=1, metrics={"loss": 0.0, "odd": float("nan")})

    def evaluate(self, model: nn.Module, data: Any) -> dict[str, float]:
        return {"loss": 0.0}


class Talkative(Plain):
    """Prints, by every way that there is, and reads."""

    def train(self, model: nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        print("hello from a task")  # noqa: T201
        sys.stdout.flush()
        os.write(1, b"\x00\x00\x00\x01hello from a file descriptor\n")
        assert sys.stdin.read() == ""
        return super().train(model, data, settings, pace)


class Endless(Plain):
    def train(self, model: nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        while True:
            pace()


class Greedy(Plain):
    """Takes a gibibyte, and keeps it."""

    def train(self, model: nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        held: list[bytearray] = []
        while len(held) < 16:
            held.append(bytearray(os.urandom(1 << 16) * 1024))
        while True:
            pace()


class Dying(Plain):
    def train(self, model: nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        print("the last words of a task", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(7)


class Broken(Plain):
    def train(self, model: nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        raise ZeroDivisionError("a bug in a task")


class Quoting(Plain):
    """Says what it read, in each way that there is."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.where = config.get("where")
        self.kind = {"task": TaskError, "wire": Malformed, "memory": RuntimeError}[str(config.get("kind"))]

    def train(self, model: nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        self._fail("train")
        return super().train(model, data, settings, pace)

    def evaluate(self, model: nn.Module, data: Any) -> dict[str, float]:
        self._fail("evaluate")
        return super().evaluate(model, data)

    def load(self, path: Path) -> Nothing:
        self._fail("load")
        return super().load(path)

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise self.kind("row 17: Jane Doe is out of memory")


class Diverging(Plain):
    def train(self, model: nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("inf"))
        return Trained(samples=1, steps=1, metrics={})
