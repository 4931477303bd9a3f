"""Fifty devices that learn digits in numpy, side by side: an MLP 64-32-10 by SGD, on a Dirichlet split.

1,797 images (scikit-learn's), 360 of them for testing.
The devices of a round take their steps together, as one batched product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

DEVICES: Final = 50
TEST: Final = 360
SAMPLES_MIN: Final = 4
HIDDEN, CLASSES, PIXELS = 32, 10, 64
SHAPES: Final = ((PIXELS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
COUNT: Final = sum(int(np.prod(shape)) for shape in SHAPES)
EPOCHS, BATCH, RATE = 5, 8, 0.1
NOTHING: Final = -1
ONE_HOT: Final = np.eye(CLASSES, dtype=np.float32)
Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Split:
    """Images, labels, and which of them each device holds."""

    x: Floats
    y: Indices
    parts: list[Indices]
    test: Indices


def split(alpha: float, seed: int) -> Split:
    """Hsu, Qi and Brown 2019, section 3; who has fewer than `SAMPLES_MIN` gets some of the largest."""
    digits, rng = load_digits(), np.random.default_rng([1, seed])
    order = rng.permutation(len(digits.target))
    parts: list[list[int]] = [[] for _ in range(DEVICES)]
    train, labels = order[TEST:], digits.target
    for label in range(CLASSES):
        members = rng.permutation(train[labels[train] == label])
        cuts = np.rint(np.cumsum(rng.dirichlet(np.full(DEVICES, alpha)))[:-1] * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.extend(piece.tolist())
    for part in parts:
        while len(part) < SAMPLES_MIN:
            part.append(max(parts, key=len).pop())
    x = (digits.data / 16.0).astype(np.float32)
    return Split(x, labels.astype(np.intp), [np.array(part, np.intp) for part in parts], order[:TEST])


def first_model(seed: int) -> Floats:
    """As PyTorch's linear layers begin: uniform in ±1 / √fan-in."""
    rng, parts = np.random.default_rng([2, seed]), []
    for shape, fan in zip(SHAPES, (PIXELS, PIXELS, HIDDEN, HIDDEN), strict=True):
        parts.append(rng.uniform(-1, 1, shape).ravel() / np.sqrt(fan))
    return np.concatenate(parts).astype(np.float32)


def train(data: Split, model: Floats, cohort: list[int], flipped: set[int], seed: list[int]) -> Floats:
    """The changes of a round's devices: (cohort, `COUNT`). Those ``flipped`` take a digit d for 9 - d."""
    rng = np.random.default_rng([3, *seed])
    plans = [_batches(data.parts[device], rng) for device in cohort]
    order = sorted(range(len(cohort)), key=lambda place: -len(plans[place]))  # who is done falls off the end
    index = np.full((len(plans[order[0]]), len(cohort), BATCH), NOTHING)
    for at, place in enumerate(order):
        index[: len(plans[place]), at] = plans[place]
    there = index != NOTHING
    weights = there / np.maximum(there.sum(axis=2, keepdims=True), 1).astype(np.float32)
    flips = np.array([[cohort[place] in flipped] for place in order])
    labels = np.where(flips, 9 - data.y[index], data.y[index])
    layers = [np.repeat(part[np.newaxis], len(cohort), axis=0) for part in _layers(model)]
    for step, active in enumerate(there.any(axis=2).sum(axis=1)):
        x, y, weight = data.x[index[step, :active]], labels[step, :active], weights[step, :active]
        _step([layer[:active] for layer in layers], x, y, weight)
    changes = np.empty((len(cohort), COUNT), np.float32)
    changes[order] = np.concatenate([part.reshape(len(cohort), -1) for part in layers], axis=1) - model
    return changes


def accuracy(data: Split, model: Floats) -> float:
    """On the test images."""
    first, first_bias, second, second_bias = _layers(model)
    hidden = np.maximum(data.x[data.test] @ first + first_bias, 0)
    found = (hidden @ second + second_bias).argmax(axis=1)
    return float((found == data.y[data.test]).mean())


def _batches(part: Indices, rng: np.random.Generator) -> Indices:
    """(batches, `BATCH`), of all epochs; what is missing in the last of an epoch is `NOTHING`."""
    orders = rng.permuted(np.tile(part, (EPOCHS, 1)), axis=1)
    full = np.pad(orders, ((0, 0), (0, -len(part) % BATCH)), constant_values=NOTHING)
    return full.reshape(-1, BATCH)


def _layers(model: Floats) -> list[Floats]:
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(model, ends), SHAPES, strict=True)]


def _step(layers: list[Floats], x: Floats, y: Indices, weight: Floats) -> None:
    first, first_bias, second, second_bias = layers
    hidden = np.maximum(x @ first + first_bias[:, np.newaxis], 0)
    logits = hidden @ second + second_bias[:, np.newaxis]
    logits = np.exp(logits - logits.max(axis=2, keepdims=True))
    wrong = logits / logits.sum(axis=2, keepdims=True)
    wrong -= ONE_HOT[y]
    wrong *= weight[..., np.newaxis]
    back = (wrong @ second.transpose(0, 2, 1)) * (hidden > 0)
    second -= RATE * (hidden.transpose(0, 2, 1) @ wrong)
    second_bias -= RATE * wrong.sum(axis=1)
    first -= RATE * (x.transpose(0, 2, 1) @ back)
    first_bias -= RATE * back.sum(axis=1)
