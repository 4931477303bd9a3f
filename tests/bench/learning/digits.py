"""The benches' task: scikit-learn's digits on fifty Dirichlet devices, an MLP of 2,410 parameters in numpy.

360 of the 1,797 images are kept for the central test; the others are spread by Dirichlet(alpha) for each
class (Hsu, Qi and Brown 2019, section 3). Training is SGD on the cross-entropy in shuffled passes, as the
tasks that ship with fedbus do it in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from coordinator.demo import data
from schemas.jobs import LocalSettings

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

DEVICES: Final = 50
SHAPES: Final = ((64, 32), (32,), (32, 10), (10,))
COUNT: Final = 2_410
SAMPLES_MIN: Final = 2  # of a device; with more, a split by Dirichlet(0.1) is hardly ever drawn
DRAWS_MAX: Final = 10_000
LOCAL: Final = LocalSettings(epochs=5, batch_size=8, learning_rate=0.1)


@dataclass(frozen=True)
class Samples:
    """Inputs in 0 … 1, one row each, and labels."""

    x: Floats
    y: Labels


@dataclass(frozen=True)
class Split:
    """Who holds what."""

    devices: list[Samples]
    test: Samples

    def held_by(self, numbers: Sequence[int]) -> Samples:
        """What these devices hold together."""
        parts = [self.devices[number] for number in numbers]
        return Samples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


@cache
def _digits() -> Samples:
    x, y = load_digits(return_X_y=True)
    return Samples((x / 16.0).astype(np.float32), y.astype(np.int64))


def split(devices: int, alpha: float, seed: int) -> Split:
    """Equal arguments give equal splits; every device holds at least `SAMPLES_MIN`."""
    whole = _digits()
    rng = np.random.default_rng([seed, int(1_000 * alpha), devices])
    train, test = data._stratified(whole.y, data.TEST_SAMPLES, rng)
    of_class = [train[whole.y[train] == label] for label in range(data.CLASSES)]
    for _ in range(DRAWS_MAX):
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(devices)]
        for members in of_class:
            ends = np.cumsum(rng.dirichlet(np.full(devices, alpha)))
            cuts = np.rint(ends[:-1] * len(members)).astype(np.intp)
            for part, piece in zip(parts, np.split(rng.permutation(members), cuts), strict=True):
                part.append(piece)
        joined = [np.concatenate(part) for part in parts]
        if min(map(len, joined)) >= SAMPLES_MIN:
            held = [Samples(whole.x[part], whole.y[part]) for part in joined]
            return Split(held, Samples(whole.x[test], whole.y[test]))
    raise RuntimeError(f"Dirichlet({alpha}) over {devices} devices: one always had less than {SAMPLES_MIN}")


def _views(flat: Floats) -> list[Floats]:
    """Weights and biases, each a part of the flat vector."""
    ends = np.cumsum([0, *(np.prod(shape) for shape in SHAPES)])
    return [
        flat[begin:end].reshape(shape) for (begin, end), shape in zip(pairwise(ends), SHAPES, strict=True)
    ]


def initial(seed: int) -> Floats:
    """First parameters, uniform within 1/√inputs, as PyTorch's linear layers begin."""
    rng = np.random.default_rng([seed, 1])
    flat = np.empty(COUNT, np.float32)
    for part, inputs in zip(_views(flat), (64, 64, 32, 32), strict=True):
        part[...] = rng.uniform(-1.0, 1.0, part.shape) / np.sqrt(inputs)
    return flat


def train(model: Floats, held: Samples, local: LocalSettings, rng: np.random.Generator) -> tuple[Floats, int]:
    """The change that local training makes, and the steps that it took."""
    flat, gradient = model.copy(), np.empty_like(model)
    weights_1, biases_1, weights_2, biases_2 = _views(flat)
    of_weights_1, of_biases_1, of_weights_2, of_biases_2 = _views(gradient)
    speed = np.zeros_like(flat)
    samples, steps = len(held.y), local.steps(len(held.y))
    done = 0
    while done < steps:
        order = rng.permutation(samples)
        x, y = held.x[order], held.y[order]
        for begin in range(0, samples, local.batch_size):
            inputs, labels = x[begin : begin + local.batch_size], y[begin : begin + local.batch_size]
            hidden = np.maximum(inputs @ weights_1 + biases_1, 0.0)
            error = _softmax(hidden @ weights_2 + biases_2)
            error[np.arange(len(labels)), labels] -= 1.0
            error /= len(labels)
            np.matmul(hidden.T, error, out=of_weights_2)
            error.sum(axis=0, out=of_biases_2)
            back = (error @ weights_2.T) * (hidden > 0.0)
            np.matmul(inputs.T, back, out=of_weights_1)
            back.sum(axis=0, out=of_biases_1)
            if local.weight_decay:
                gradient += local.weight_decay * flat
            speed *= local.momentum
            speed += gradient
            flat -= local.learning_rate * speed
            done += 1
            if done == steps:
                break
    return flat - model, done


def _softmax(outputs: Floats) -> Floats:
    outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    outputs /= outputs.sum(axis=1, keepdims=True)
    return outputs


def accuracy(model: Floats, held: Samples) -> float:
    """The part of the samples that the model labels rightly."""
    weights_1, biases_1, weights_2, biases_2 = _views(model)
    outputs = np.maximum(held.x @ weights_1 + biases_1, 0.0) @ weights_2 + biases_2
    return float(np.mean(outputs.argmax(axis=1) == held.y))
