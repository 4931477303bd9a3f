"""What the classification tasks share: checked configuration, held-out part, SGD, evaluation.

A task adds what is its own: the keys of its configuration, a model, and how a file becomes `Samples`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_agent.tasks import Config, LocalSettings, Pace, TaskError, Trained

HELD_OUT_SEED: Final = 20_170_217
EVALUATION_BATCH: Final = 1_024
HIDDEN: Final = 64

Side = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
Layers = Annotated[list[Side], msgspec.Meta(max_length=16)]
Hidden: TypeAlias = Side | Layers | None
HeldOut = Annotated[float, msgspec.Meta(ge=0, le=0.9)]

HIDDEN_ALLOWED: Final = f"a width from 1 to 65536, or a list of at most 16 widths (default {HIDDEN})"
HELD_OUT_ALLOWED: Final = "the part of the data kept for evaluation, 0 to 0.9 (default 0.1)"

Keys = TypeVar("Keys", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Samples:
    """One data set in memory. ``train`` and ``held_out`` are disjoint index vectors into it."""

    path: Path
    x: Tensor  # (N, *shape of one sample), uint8 or float32, to be divided by `scale`
    y: Tensor  # (N,), int64
    train: Tensor
    held_out: Tensor
    scale: float = 1.0

    @property
    def train_samples(self) -> int:
        return len(self.train)

    def batch(self, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Inputs as the model takes them, float32 and scaled, and labels (n,); on ``device``."""
        x, y = self.x[indices].to(device), self.y[indices].to(device)
        return x.to(torch.float32) / self.scale, y


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says about ``path`` into a `TaskError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise TaskError(
            f"{path}: no such file; correct the path of this data set or put the file there"
        ) from error
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be read: {error.strerror or error}; correct its type or permissions"
        ) from error


def parse(task: str, kind: type[Keys], allowed: Mapping[str, str], config: Config) -> Keys:
    """The checked configuration; ``allowed`` says of each key in words what it takes.

    Raises `TaskError` naming key, value and what is allowed.
    """
    for key, value in config.items():
        if key not in allowed:
            raise TaskError(f"{task} task: unknown key {key} = {value!r}; the keys are {', '.join(allowed)}")
    for field in msgspec.structs.fields(kind):
        if field.name not in config:
            if field.required:
                raise TaskError(f"{task} task: {field.name} is missing; give {allowed[field.name]}")
            continue
        try:
            msgspec.convert(config[field.name], field.type)
        except msgspec.ValidationError as error:
            value = config[field.name]
            raise TaskError(
                f"{task} task: {field.name} = {value!r} is not allowed; give {allowed[field.name]}"
            ) from error
    return msgspec.convert(dict(config), kind)


def split(samples: int, held_out: float) -> tuple[Tensor, Tensor]:
    """Indices for training and for evaluation: disjoint, sorted, together all of 0 … samples - 1.

    Depends on the two arguments only, so a file keeps its held-out part over rounds and restarts. A
    part above 0 holds at least one sample, except from a file of one, which is for training.
    """
    kept = min(samples - 1, max(1, round(samples * held_out))) if held_out else 0
    # Raw PCG64 output and a stable sort: numpy promises both for ever, `Generator.permutation` it does not.
    order = np.argsort(np.random.PCG64(HELD_OUT_SEED).random_raw(samples), kind="stable")
    return torch.from_numpy(np.sort(order[kept:])), torch.from_numpy(np.sort(order[:kept]))


def mlp(features: int, hidden: Hidden, classes: int) -> nn.Module:
    """Flatten, then linear layers with ReLU between them; with ``hidden = []`` one linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = features
    widths = [HIDDEN] if hidden is None else hidden
    for number, wide in enumerate([widths] if isinstance(widths, int) else widths, start=1):
        layers[f"hidden{number}"] = nn.Linear(width, wide)
        layers[f"relu{number}"] = nn.ReLU()
        width = wide
    layers["output"] = nn.Linear(width, classes)
    return nn.Sequential(layers)


def train(model: nn.Module, data: Samples, settings: LocalSettings, pace: Pace) -> Trained:
    """SGD on the cross-entropy in shuffled passes, each with all samples, on the model's device; with
    FedProx's term, if ``settings.proximal`` is set.

    ``metrics["loss"]`` is the mean of the last pass. Raises `TaskError` when training diverges.
    """
    torch.manual_seed(settings.seed)  # for models with dropout; the batches have a source of their own
    order = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    near = Proximal(model, settings.mu)
    model.train()
    device = _device(model)
    steps, loss = 0, math.nan
    for _ in range(settings.epochs):
        if steps and steps == settings.steps_max:
            break
        total, seen = 0.0, 0
        shuffled = data.train[torch.randperm(len(data.train), generator=order)]
        for indices in torch.split(shuffled, settings.batch_size):
            loss = _step(model, optimiser, near, *data.batch(indices, device), step=steps)
            total += loss * len(indices)
            seen += len(indices)
            steps += 1
            pace()
            if steps == settings.steps_max:
                break
        loss = total / seen
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise TaskError(
            f"training diverged: the last step made parameters infinite or NaN; "
            f"lower learning_rate = {settings.learning_rate} or momentum = {settings.momentum}"
        )
    return Trained(samples=data.train_samples, steps=steps, metrics={"loss": loss})


def evaluate(model: nn.Module, data: Samples) -> dict[str, float]:
    """Loss and accuracy on the held-out part, on the model's device. Raises `TaskError` for a loss of NaN.

    ``held_out`` is 1 if the samples are never trained on, 0 if the file keeps no such part
    (``held_out = 0``, or a single sample) and all of it was used.
    """
    part = data.held_out if len(data.held_out) else data.train
    device = _device(model)
    loss, correct = 0.0, 0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for indices in torch.split(part, EVALUATION_BATCH):
            x, y = data.batch(indices, device)
            outputs = model(x)
            loss += functional.cross_entropy(outputs, y, reduction="sum").item()
            correct += int((outputs.argmax(dim=1) == y).sum().item())
    model.train(was_training)
    if not math.isfinite(loss):
        raise TaskError(
            f"{data.path}: the model's loss is {loss}: its parameters diverged; "
            f"go back to an earlier version and lower learning_rate"
        )
    return {
        "loss": loss / len(part),
        "accuracy": correct / len(part),
        "samples": float(len(part)),
        "held_out": float(len(data.held_out) > 0),
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class Proximal:
    """FedProx's term ½·μ·‖w - w₀‖²: w₀ is the model's parameters as they are now, unless μ is 0."""

    def __init__(self, model: nn.Module, mu: float) -> None:
        self._mu = mu
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad and mu]
        self._received = [(parameter, parameter.detach().clone()) for parameter in trained]

    def add(self) -> None:
        """Add the term's gradient to the gradients."""
        for parameter, received in self._received:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - received, alpha=self._mu)


def _step(
    model: nn.Module, optimiser: torch.optim.Optimizer, near: Proximal, x: Tensor, y: Tensor, *, step: int
) -> float:
    """One optimiser step; the loss before it."""
    optimiser.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    value = loss.item()
    if not math.isfinite(value):
        raise TaskError(
            f"training diverged: the loss is {value} at step {step + 1}; lower learning_rate or momentum"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    near.add()
    optimiser.step()
    return value
