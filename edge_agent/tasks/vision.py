"""Classification of images (or of plain feature vectors) from one ``npz`` file, by an MLP or a small CNN.

The file holds ``x``, (N, \\*shape) in uint8 or float, and ``y``, (N,) integer labels; nothing pickled.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_agent.tasks import Config, LocalSettings, Pace, TaskError, Trained

HELD_OUT_SEED: Final = 20_170_217
EVALUATION_BATCH: Final = 1_024
CNN_CHANNELS: Final = (16, 32)
FEATURES_MAX: Final = 2**24

Side = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
Layers = Annotated[list[Side], msgspec.Meta(max_length=16)]


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a job says about a vision task. See `ALLOWED` for the same in words."""

    model: Literal["mlp", "cnn"] = "mlp"
    shape: Annotated[list[Side], msgspec.Meta(min_length=1, max_length=3)]
    classes: Annotated[int, msgspec.Meta(ge=2, le=65_536)]
    hidden: Side | Layers | None = None
    scale: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    held_out: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = 0.1


ALLOWED: Final = {
    "model": '"mlp" or "cnn"',
    "shape": "a list of 1 to 3 sizes of one sample, each 1 to 65536: [F], [H, W] or [C, H, W]",
    "classes": "a whole number from 2 to 65536",
    "hidden": 'for "mlp": a width from 1 to 65536, or a list of at most 16 widths (default 64)',
    "scale": "a number above 0 by which samples are divided (default 255 for uint8, 1 for float)",
    "held_out": "the part of the data kept for evaluation, 0 to 0.9 (default 0.1)",
}


@dataclass(frozen=True, slots=True)
class VisionData:
    """One file in memory. ``train`` and ``held_out`` are disjoint index vectors into it."""

    path: Path
    x: Tensor  # (N, *shape), uint8 or float32, not yet scaled
    y: Tensor  # (N,), int64
    train: Tensor
    held_out: Tensor
    scale: float

    @property
    def train_samples(self) -> int:
        return len(self.train)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs as the model takes them, (n, *shape) float32 and scaled, and labels (n,)."""
        return self.x[indices].to(torch.float32) / self.scale, self.y[indices]


class VisionTask:
    """Cross-entropy classification with SGD. Implements `edge_agent.tasks.Task`."""

    def __init__(self, config: Config) -> None:
        self.config = parsed(config)

    def build(self) -> nn.Module:
        return _mlp(self.config) if self.config.model == "mlp" else _cnn(self.config)

    def load(self, path: Path) -> VisionData:
        x, y = read_arrays(path)
        inputs, labels = _checked(path, x, y, self.config)
        train, held_out = split(len(y), self.config.held_out)
        scale = self.config.scale or (255.0 if inputs.dtype == torch.uint8 else 1.0)
        return VisionData(path=path, x=inputs, y=labels, train=train, held_out=held_out, scale=scale)

    def train(self, model: nn.Module, data: VisionData, settings: LocalSettings, pace: Pace) -> Trained:
        """SGD in shuffled passes, each with all samples. ``metrics["loss"]`` is the mean of the last pass."""
        torch.manual_seed(settings.seed)  # for models with dropout; the batches have a source of their own
        order = torch.Generator().manual_seed(settings.seed)
        optimiser = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        model.train()
        steps, loss = 0, math.nan
        for _ in range(settings.epochs):
            if steps and steps == settings.steps_max:
                break
            total, seen = 0.0, 0
            shuffled = data.train[torch.randperm(len(data.train), generator=order)]
            for indices in torch.split(shuffled, settings.batch_size):
                total += _step(model, optimiser, *data.batch(indices), step=steps) * len(indices)
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

    def evaluate(self, model: nn.Module, data: VisionData) -> dict[str, float]:
        """``held_out`` is 1 if the samples are never trained on, 0 if the file keeps no such part
        (``held_out = 0``, or a single sample) and all of it was used."""
        part = data.held_out if len(data.held_out) else data.train
        loss, correct = 0.0, 0
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            for indices in torch.split(part, EVALUATION_BATCH):
                x, y = data.batch(indices)
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


def parsed(config: Config) -> VisionConfig:
    """The checked configuration. Raises `TaskError` naming key, value and what is allowed."""
    for key, value in config.items():
        if key not in ALLOWED:
            raise TaskError(f"vision task: unknown key {key} = {value!r}; the keys are {', '.join(ALLOWED)}")
    for field in msgspec.structs.fields(VisionConfig):
        if field.name not in config:
            if field.required:
                raise TaskError(f"vision task: {field.name} is missing; give {ALLOWED[field.name]}")
            continue
        try:
            msgspec.convert(config[field.name], field.type)
        except msgspec.ValidationError as error:
            raise _not_allowed(field.name, config[field.name]) from error
    checked = msgspec.convert(dict(config), VisionConfig)
    if math.prod(checked.shape) > FEATURES_MAX:
        raise TaskError(
            f"vision task: shape = {checked.shape} has more than {FEATURES_MAX} values per sample"
        )
    if checked.model == "cnn":
        if checked.hidden is not None:
            raise _not_allowed("hidden", checked.hidden, " with model = 'cnn'")
        if len(checked.shape) < 2 or min(checked.shape[-2:]) < 4:
            raise TaskError(
                f"vision task: shape = {checked.shape} does not suit model = 'cnn'; "
                f"give [H, W] or [C, H, W] with H and W at least 4, or model = 'mlp'"
            )
    return checked


def read_arrays(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """``x`` and ``y`` of an npz file as they are stored. Raises `TaskError`."""
    remedy = "write it with numpy.savez(path, x=..., y=...)"
    try:
        # Opened here: numpy leaks its own handle when the archive is damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise TaskError(f"{path}: holds one bare array, not an npz archive; {remedy}")
            names = sorted(archive.files)
            if not {"x", "y"} <= set(names):
                raise TaskError(f"{path}: holds {names or 'nothing'}, but x and y are needed; {remedy}")
            return archive["x"], archive["y"]
    except FileNotFoundError as error:
        raise TaskError(
            f"{path}: no such file; correct the path of this data set or put the file there"
        ) from error
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be read: {error.strerror or error}; correct its type or permissions"
        ) from error
    except (EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise TaskError(f"{path}: is not an npz file of plain arrays ({error}); {remedy}") from error


def split(samples: int, held_out: float) -> tuple[Tensor, Tensor]:
    """Indices for training and for evaluation: disjoint, sorted, together all of 0 … samples - 1.

    Depends on the two arguments only, so a file keeps its held-out part over rounds and restarts. A
    part above 0 holds at least one sample, except from a file of one, which is for training.
    """
    kept = min(samples - 1, max(1, round(samples * held_out))) if held_out else 0
    # Raw PCG64 output and a stable sort: numpy promises both for ever, `Generator.permutation` it does not.
    order = np.argsort(np.random.PCG64(HELD_OUT_SEED).random_raw(samples), kind="stable")
    return torch.from_numpy(np.sort(order[kept:])), torch.from_numpy(np.sort(order[:kept]))


def _checked(
    path: Path, x: npt.NDArray[Any], y: npt.NDArray[Any], config: VisionConfig
) -> tuple[Tensor, Tensor]:
    """Tensors of both arrays if they fit the configuration and each other."""
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise TaskError(f"{path}: x is {x.dtype}; store it as uint8 or as a float type")
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise TaskError(
            f"{path}: y is {y.dtype} of shape {y.shape}; store one whole number per sample, shape (N,)"
        )
    if not len(y):
        raise TaskError(f"{path}: holds no samples; give it at least one")
    if x.shape != (len(y), *config.shape):
        raise TaskError(
            f"{path}: x has shape {x.shape}, but {len(y)} labels and the job's shape = {config.shape} "
            f"need {(len(y), *config.shape)}; correct the file or the job"
        )
    outside = (y < 0) | (y >= config.classes)
    if outside.any():
        raise TaskError(
            f"{path}: label {y[outside][0]} of sample {outside.argmax()} is outside "
            f"0 to {config.classes - 1}; correct the file or the job's classes = {config.classes}"
        )
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused below
            x = x.astype(np.float32)
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise TaskError(
                f"{path}: {np.count_nonzero(~finite)} of {len(x)} samples hold NaN or infinite values, "
                f"the first is sample {finite.argmin()}; remove or repair them"
            )
    # torch takes native byte order and writable memory only.
    return torch.from_numpy(np.require(x, requirements=["C", "W"])), torch.from_numpy(y.astype(np.int64))


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, *, step: int) -> float:
    """One optimiser step; the loss before it."""
    optimiser.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    value = loss.item()
    if not math.isfinite(value):
        raise TaskError(
            f"training diverged: the loss is {value} at step {step + 1}; lower learning_rate or momentum"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return value


def _mlp(config: VisionConfig) -> nn.Module:
    """Flatten, then linear layers with ReLU between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(config.shape)
    hidden = [64] if config.hidden is None else config.hidden
    for number, wide in enumerate([hidden] if isinstance(hidden, int) else hidden, start=1):
        layers[f"hidden{number}"] = nn.Linear(width, wide)
        layers[f"relu{number}"] = nn.ReLU()
        width = wide
    layers["output"] = nn.Linear(width, config.classes)
    return nn.Sequential(layers)


def _cnn(config: VisionConfig) -> nn.Module:
    """Convolve and pool twice, then one linear layer. No batch norm: its statistics average badly."""
    channels = config.shape[0] if len(config.shape) == 3 else 1
    height, width = config.shape[-2:]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(config.shape) == 2:
        layers["channel"] = nn.Unflatten(1, (1, height))
    for number, maps in enumerate(CNN_CHANNELS, start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, maps, kernel_size=3, padding=1)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        channels = maps
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels * (height // 4) * (width // 4), config.classes)
    return nn.Sequential(layers)


def _not_allowed(key: str, value: object, where: str = "") -> TaskError:
    return TaskError(f"vision task: {key} = {value!r} is not allowed{where}; give {ALLOWED[key]}")
