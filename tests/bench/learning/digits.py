"""The benches' task: scikit-learn's digits on fifty Dirichlet devices, an MLP in numpy, of 2,410 parameters
unless a bench asks for more.

360 of the 1,797 images are kept for the central test; the others are spread by Dirichlet(alpha) for each
class (Hsu, Qi and Brown 2019, section 3). Training is SGD on the cross-entropy in shuffled passes, as the
tasks that ship with fedbus do it in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from coordinator.demo import data
from schemas.jobs import LocalSettings

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

DEVICES: Final = 50
INPUTS: Final = 65  # the last one always 1: its weights are the biases, so it is with the hidden ones
CLASSES: Final = 10
HIDDEN: Final = 32
COUNT: Final = 2_410
ONE_HOT: Final = np.eye(10, dtype=np.float32)
SAMPLES_MIN: Final = 2  # of a device; with more, a split by Dirichlet(0.1) is hardly ever drawn
DRAWS_MAX: Final = 10_000
LOCAL: Final = LocalSettings(epochs=5, batch_size=8, learning_rate=0.1)


@dataclass(frozen=True)
class Samples:
    """Inputs in 0 … 1 and a last one of 1, a row each, and labels."""

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
    inputs = np.concatenate([x / 16.0, np.ones((len(x), 1))], axis=1)
    return Samples(inputs.astype(np.float32), y.astype(np.int64))


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


def _layers(flat: Floats) -> tuple[Floats, Floats]:
    """Each a part of the flat vectors, one or more, whose size says how many hidden units there are."""
    hidden = (flat.shape[-1] - CLASSES) // (INPUTS + CLASSES)
    many, end = flat.shape[:-1], INPUTS * hidden
    first = flat[..., :end].reshape(*many, INPUTS, hidden)
    return first, flat[..., end:].reshape(*many, hidden + 1, CLASSES)


def initial(seed: int, hidden: int = HIDDEN) -> Floats:
    """First parameters, uniform within 1/√inputs, as PyTorch's linear layers begin."""
    rng = np.random.default_rng([seed, 1])
    flat = np.empty(INPUTS * hidden + (hidden + 1) * CLASSES, np.float32)
    for layer in _layers(flat):
        layer[...] = rng.uniform(-1.0, 1.0, layer.shape) / np.sqrt(len(layer) - 1)
    return flat


def train(
    model: Floats,
    held: Sequence[Samples],
    local: Sequence[LocalSettings],
    rngs: Sequence[np.random.Generator],
) -> list[tuple[Floats, int]]:
    """The change that each device's training makes, and the steps that it took. All at once, which is several
    times faster than one by one; their settings differ in numbers of epochs and steps only."""
    common = local[0]
    steps = [each.steps(len(part.y)) for each, part in zip(local, held, strict=True)]
    order = sorted(range(len(held)), key=lambda number: -steps[number])
    form = len(held), max(steps), common.batch_size
    x, wanted = np.zeros((*form, INPUTS), np.float32), np.zeros((*form, CLASSES), np.float32)
    weights = np.zeros((*form, 1), np.float32)
    for place, number in enumerate(order):
        part, taken = held[number], steps[number]
        picks, weights[place, :taken] = _batches(len(part.y), taken, common.batch_size, rngs[number])
        x[place, :taken], wanted[place, :taken] = part.x[picks], ONE_HOT[part.y[picks]]
    flat = np.repeat(model[np.newaxis], len(held), axis=0)
    gradient, speed = np.empty_like(flat), np.zeros_like(flat)
    going = len(held)
    for step in range(max(steps)):
        while steps[order[going - 1]] <= step:
            going -= 1
        moved, by = flat[:going], gradient[:going]
        _gradient(moved, x[:going, step], wanted[:going, step], weights[:going, step], by)
        if common.weight_decay:
            by += common.weight_decay * moved
        if common.momentum:
            speed[:going] *= common.momentum
            speed[:going] += by
            np.copyto(by, speed[:going])
        by *= common.learning_rate
        moved -= by
    flat -= model
    return [(flat[order.index(number)], steps[number]) for number in range(len(held))]


def _batches(
    samples: int, steps: int, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], Floats]:
    """Which samples each step takes, in shuffled passes, and what each of them counts: batches are filled up
    with samples that count nothing."""
    in_pass = -(-samples // size)
    passes = -(-steps // in_pass)
    picks = np.zeros((passes, in_pass * size), np.intp)
    counts = np.zeros((passes, in_pass * size), np.float32)
    for each in picks:
        each[:samples] = rng.permutation(samples)
    counts[:, :samples] = 1.0
    batches = counts.reshape(-1, size, 1)
    batches /= batches.sum(axis=1, keepdims=True)
    return picks.reshape(-1, size)[:steps], batches[:steps]


def _gradient(flat: Floats, x: Floats, wanted: Floats, weights: Floats, out: Floats) -> None:
    """Of the mean cross-entropy of each device's batch; ``wanted`` has a 1 at each sample's label."""
    (first, second), (of_first, of_second) = _layers(flat), _layers(out)
    hidden = _hidden(first, x)
    error = _softmax(hidden @ second)
    error -= wanted
    error *= weights
    np.matmul(np.swapaxes(hidden, -1, -2), error, out=of_second)
    back = error @ np.swapaxes(second[..., :-1, :], -1, -2)
    back *= hidden[..., :-1] > 0.0
    np.matmul(np.swapaxes(x, -1, -2), back, out=of_first)


def _hidden(first: Floats, x: Floats) -> Floats:
    hidden: Floats = np.ones((*x.shape[:-1], first.shape[-1] + 1), first.dtype)
    np.maximum(x @ first, 0.0, out=hidden[..., :-1])
    return hidden


def outputs(model: Floats, x: Floats) -> Floats:
    """Of the last layer, before the softmax."""
    first, second = _layers(model)
    return _hidden(first, x) @ second


def _softmax(outputs: Floats) -> Floats:
    outputs -= outputs.max(axis=-1, keepdims=True)
    np.exp(outputs, out=outputs)
    outputs /= outputs.sum(axis=-1, keepdims=True)
    return outputs


def accuracy(model: Floats, held: Samples) -> float:
    """The part of the samples that the model labels rightly."""
    return float(np.mean(outputs(model, held.x).argmax(axis=1) == held.y))
