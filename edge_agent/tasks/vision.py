"""Classification of images (or of plain feature vectors), by an MLP or a small CNN.

The data are one ``npz`` file with ``x``, (N, \\*shape) in uint8 or float, and ``y``, (N,) integer labels,
nothing pickled; or a pair of IDX files (`edge_agent.tasks.idx`).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_agent.tasks import Config, LocalSettings, Pace, TaskError, Trained, idx
from edge_agent.tasks import classification as shared
from edge_agent.tasks.lora import adapt

CNN_CHANNELS: Final = (16, 32)
FEATURES_MAX: Final = 2**24


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a job says about a vision task. See `ALLOWED` for the same in words."""

    model: Literal["mlp", "cnn"] = "mlp"
    shape: Annotated[list[shared.Side], msgspec.Meta(min_length=1, max_length=3)]
    classes: Annotated[int, msgspec.Meta(ge=2, le=65_536)]
    hidden: shared.Hidden = None
    scale: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    held_out: shared.HeldOut = 0.1
    lora_rank: Annotated[int, msgspec.Meta(ge=1, le=1_024)] | None = None
    lora_alpha: Annotated[float, msgspec.Meta(gt=0, le=1e4)] | None = None


ALLOWED: Final = {
    "model": '"mlp" or "cnn"',
    "shape": "a list of 1 to 3 sizes of one sample, each 1 to 65536: [F], [H, W] or [C, H, W]",
    "classes": "a whole number from 2 to 65536",
    "hidden": f'for "mlp": {shared.HIDDEN_ALLOWED}',
    "scale": "a number above 0 by which samples are divided (default 255 for uint8, 1 for float)",
    "held_out": shared.HELD_OUT_ALLOWED,
    "lora_rank": "the rank of adapters at the linear layers, 1 to 1024 (default none: all is trained)",
    "lora_alpha": "with lora_rank: a number above 0, to 10000 (default lora_rank)",
}


class VisionTask:
    """Cross-entropy classification with SGD. Implements `edge_agent.tasks.Task`."""

    accelerated = True

    def __init__(self, config: Config) -> None:
        self.config = parsed(config)

    @classmethod
    def inspect(cls, path: Path) -> dict[str, float | str]:
        """What the data at ``path`` are, whatever a job wants of them. Raises `TaskError`."""
        x, y = _sound(path, *read_arrays(path))
        shape = f"[{', '.join(map(str, x.shape[1:]))}]"
        return {"samples": float(len(y)), "shape": shape, "labels": f"{y.min()} to {y.max()}"}

    def build(self) -> nn.Module:
        config = self.config
        if config.model == "cnn":
            model = _cnn(config)
        else:
            model = shared.mlp(math.prod(config.shape), config.hidden, config.classes)
        if config.lora_rank is None:
            return model
        return adapt(model, config.lora_rank, config.lora_alpha or float(config.lora_rank))

    def load(self, path: Path) -> shared.Samples:
        x, y = _fitting(path, *_sound(path, *read_arrays(path)), self.config)
        train, held_out = shared.split(len(y), self.config.held_out)
        return shared.Samples(
            path=path,
            # torch takes native byte order and writable memory only.
            x=torch.from_numpy(np.require(x, requirements=["C", "W"])),
            y=torch.from_numpy(y.astype(np.int64)),
            train=train,
            held_out=held_out,
            scale=self.config.scale or (255.0 if x.dtype == np.uint8 else 1.0),
        )

    def train(self, model: nn.Module, data: shared.Samples, settings: LocalSettings, pace: Pace) -> Trained:
        return shared.train(model, data, settings, pace)

    def evaluate(self, model: nn.Module, data: shared.Samples) -> dict[str, float]:
        return shared.evaluate(model, data)


def parsed(config: Config) -> VisionConfig:
    """The checked configuration. Raises `TaskError` naming key, value and what is allowed."""
    checked = shared.parse("vision", VisionConfig, ALLOWED, config)
    if math.prod(checked.shape) > FEATURES_MAX:
        raise TaskError(
            f"vision task: shape = {checked.shape} has more than {FEATURES_MAX} values per sample"
        )
    if checked.lora_alpha is not None and checked.lora_rank is None:
        raise TaskError(
            f"vision task: lora_alpha = {checked.lora_alpha:g} is not allowed without lora_rank; "
            f"give lora_rank, or leave it out"
        )
    if checked.model == "cnn":
        if checked.hidden is not None:
            raise TaskError(
                f"vision task: hidden = {checked.hidden!r} is not allowed with model = 'cnn'; "
                f"leave it out, or give model = 'mlp'"
            )
        if len(checked.shape) < 2 or min(checked.shape[-2:]) < 4:
            raise TaskError(
                f"vision task: shape = {checked.shape} does not suit model = 'cnn'; "
                f"give [H, W] or [C, H, W] with H and W at least 4, or model = 'mlp'"
            )
    return checked


def read_arrays(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """``x`` and ``y`` of an npz file, or images and labels of IDX files, as stored. Raises `TaskError`."""
    if idx.is_idx(path):
        return idx.read_pair(path)
    remedy = "write it with numpy.savez(path, x=..., y=...)"
    try:
        # Opened here: numpy leaks its own handle when the archive is damaged.
        with shared.reading(path), path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise TaskError(f"{path}: holds one bare array, not an npz archive; {remedy}")
            names = sorted(archive.files)
            if not {"x", "y"} <= set(names):
                raise TaskError(f"{path}: holds {names or 'nothing'}, but x and y are needed; {remedy}")
            return archive["x"], archive["y"]
    except (EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise TaskError(f"{path}: is not an npz file of plain arrays ({error}); {remedy}") from error


def _sound(path: Path, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both arrays, ``x`` in uint8 or float32, if they are labelled samples of any kind."""
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise TaskError(f"{path}: x is {x.dtype}; store it as uint8 or as a float type")
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise TaskError(
            f"{path}: y is {y.dtype} of shape {y.shape}; store one whole number per sample, shape (N,)"
        )
    if x.shape[:1] != y.shape:
        raise TaskError(f"{path}: x has shape {x.shape}, but there are {len(y)} labels; store one per sample")
    if not len(y):
        raise TaskError(f"{path}: holds no samples; give it at least one")
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused below
            x = x.astype(np.float32)
        finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
        if not finite.all():
            raise TaskError(
                f"{path}: {np.count_nonzero(~finite)} of {len(x)} samples hold NaN or infinite values, "
                f"the first is sample {finite.argmin()}; remove or repair them"
            )
    return x, y


def _fitting(
    path: Path, x: npt.NDArray[Any], y: npt.NDArray[Any], config: VisionConfig
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both arrays if they are what the job expects."""
    if x.shape[1:] != tuple(config.shape):
        raise TaskError(
            f"{path}: a sample has shape {list(x.shape[1:])}, the job's shape is {config.shape}; "
            f"correct the file or the job"
        )
    outside = (y < 0) | (y >= config.classes)
    if outside.any():
        raise TaskError(
            f"{path}: label {y[outside][0]} of sample {outside.argmax()} is outside "
            f"0 to {config.classes - 1}; correct the file or the job's classes = {config.classes}"
        )
    return x, y


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
