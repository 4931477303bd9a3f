"""What a model engineer implements: a task trains one kind of model on one kind of local data.

A task is a class, installed on the device as an entry point of the group ``fedbus.tasks`` and allowed
by the device owner's policy; a training request names it and configures it, and carries no code.
Looking for installed tasks imports none of them, and this module never imports torch, so the resident
agent may use it; tasks themselves are loaded by the worker process only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from schemas.jobs import LocalSettings, Scalar

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = [
    "GROUP",
    "Config",
    "Data",
    "LocalSettings",
    "Pace",
    "Task",
    "TaskError",
    "Trained",
    "find",
    "installed",
]

GROUP: Final = "fedbus.tasks"

Config: TypeAlias = Mapping[str, Scalar | list[str | int | float]]
"""`schemas.jobs.TaskConfig`, to be read only."""

Pace: TypeAlias = Callable[[], None]
"""Called after every optimiser step; may sleep, and may raise to end the training (let it through)."""


class TaskError(Exception):
    """A task cannot do what it was asked; nothing was trained that may be used. For people: the message
    names the thing (key, file, step), the cause and the remedy. What ``load``, ``train`` and ``evaluate``
    raise may quote data and stays on the device; what ``__init__`` and ``build`` raise is told to the
    coordinator, whose job it is."""


class Data(Protocol):
    """What `Task.load` returns; its form is the task's own business."""

    @property
    def train_samples(self) -> int:
        """Samples that training uses (without the held-out part): the update's weight. At least 1."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One local training: samples it drew from (the update's weight), optimiser steps, metrics."""

    samples: int
    steps: int
    metrics: dict[str, float]


class Task(Protocol):
    """One kind of local training. All methods run in the worker process, one after the other.

    ``data`` is always what this task's own ``load`` returned, so implementations name its exact type
    where this says ``Any``. All errors meant for people are `TaskError`.

    Two more are optional. A class attribute ``accelerated = True`` says that ``train`` and ``evaluate``
    move their batches to the model's device: without it, the model stays on the CPU. A class method
    ``inspect(path: Path) -> dict[str, float | str]`` tells what a data set holds (counts, shape, columns)
    while no job is known; it raises `TaskError` when the data cannot be used.
    """

    def __init__(self, config: Config) -> None:
        """Validate the job's ``config`` without touching files. Raises `TaskError`: key, value, allowed."""

    def build(self) -> torch.nn.Module:
        """A fresh model. The caller has seeded torch's random numbers: one seed, one set of parameters."""

    def load(self, path: Path) -> Data:
        """Read the device's data. Raises `TaskError` if missing, empty or unfit: file, cause, remedy."""

    def train(self, model: torch.nn.Module, data: Any, settings: LocalSettings, pace: Pace) -> Trained:
        """Train ``model`` in place, calling ``pace()`` after every optimiser step.

        The same model, data and settings on the same machine's CPU give the same parameters to the bit.
        Raises `TaskError` when training diverges.
        """

    def evaluate(self, model: torch.nn.Module, data: Any) -> dict[str, float]:
        """Metrics on the held-out part: at least ``loss``, ``accuracy`` and ``samples``; all finite."""


def installed() -> list[str]:
    """Names of the installed tasks, sorted; none without PyTorch. Imports none of them."""
    if find_spec("torch") is None:
        return []
    return sorted({point.name for point in entry_points(group=GROUP)})


def find(name: str) -> type[Task]:
    """The class of task ``name``; imports its module. Whether it is *allowed* is the policy's to say.

    Raises `TaskError` when it is not installed, installed twice, or cannot be imported.
    """
    point = _only(name, entry_points(group=GROUP, name=name))
    try:
        found = point.load()
    except Exception as error:  # a plug-in's import may fail in any way
        raise TaskError(
            f"task {name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}; "
            f"repair or reinstall {_package(point)}"
        ) from error
    missing = [method for method in ("build", "load", "train", "evaluate") if not hasattr(found, method)]
    if not isinstance(found, type) or missing:
        raise TaskError(
            f"task {name!r} ({point.value}) is not a class with build, load, train and evaluate"
            f"{': it lacks ' + ', '.join(missing) if missing else ''}; correct {_package(point)}"
        )
    return found


def _only(name: str, points: Iterable[EntryPoint]) -> EntryPoint:
    by_value = {point.value: point for point in points}
    if not by_value:
        raise TaskError(
            f"task {name!r} is not installed on this device; installed: {', '.join(installed()) or 'none'}; "
            f"install the package that provides it as an entry point of group {GROUP!r}"
        )
    if len(by_value) > 1:
        raise TaskError(
            f"task {name!r} is installed more than once ({', '.join(sorted(by_value))}); "
            f"uninstall all but one of {', '.join(sorted(map(_package, by_value.values())))}"
        )
    return next(iter(by_value.values()))


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else "its package"
