"""What stands for a round's mean when some devices are broken or hostile: rules that see all updates at once.

They read the updates by blocks of coordinates, so that memory is n times a block, never n times the model.
Each update counts alike, as published, because samples are what a device says of itself; a change longer than
``clip_norm`` is scaled down before.

Coordinate-wise median and trimmed mean: Yin, Chen, Ramchandran and Bartlett 2018, "Byzantine-robust
distributed learning: towards optimal statistical rates", definitions 1 and 2. In every coordinate Δ is the
median of the n changes, or, with k = ⌊trim · n⌋, the mean of those that are left without the k smallest and
the k greatest.

Multi-Krum: Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine learning with adversaries: Byzantine
tolerant gradient descent", section 4. With f attackers assumed, the score of update i is the sum of ‖δᵢ -
δⱼ‖² over the n - f - 2 updates j closest to it; Δ is the mean of the n - f updates with the lowest scores, of
equal ones the earlier.

Elementwise in float64; sums go over `PIECE` coordinates by halves, so that they too are elementwise, then
over the pieces in order: the same bits on every machine, however the blocks are cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.strategies.optimiser import Floats
from schemas.jobs import ServerSettings, trimmed

PIECE: Final = 1_024  # coordinates at a time, a power of two


class Updates(Protocol):
    """A round's n updates, in the order of the log."""

    @property
    def scales(self) -> Floats:
        """What each is multiplied by."""
        ...

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The coordinates in order: where a block begins, a multiple of `PIECE`, and (n, some) of them; a
        buffer that the next one takes. May be asked for again."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What a rule found of each update: its ``cosines`` to Δ (0 where one of the two is nothing), and which
    were ``left_out`` as a whole."""

    cosines: list[float]
    left_out: list[int] = field(default_factory=list)


Aggregation = Callable[[Updates, Floats], Told]
"""Puts Δ of the updates into the vector."""


def aggregation(settings: ServerSettings) -> Aggregation | None:
    """The rule that a job names; None for the mean, which is made while updates come in."""
    match settings.aggregation:
        case "median":
            return lambda updates, out: _by_coordinate(updates, out, _median)
        case "trimmed_mean":
            return lambda updates, out: _by_coordinate(
                updates, out, lambda ordered: _trimmed(ordered, settings.trim)
            )
        case "multi_krum":
            return lambda updates, out: _multi_krum(updates, out, settings.byzantine)
    return None


def _by_coordinate(updates: Updates, out: Floats, rule: Callable[[Floats], Floats]) -> Told:
    """``rule`` makes Δ of changes that are sorted in each coordinate."""
    cosines = _Cosines(len(updates.scales))
    for start, piece in _pieces(updates):
        ordered = np.sort(piece, axis=0)
        mean = rule(ordered)
        out[start : start + PIECE] = mean[: len(out) - start]
        cosines.see(piece, mean)
    return Told(cosines.told())


def _median(ordered: Floats) -> Floats:
    half = len(ordered) // 2
    middle: Floats = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2.0
    return middle


def _trimmed(ordered: Floats, trim: float) -> Floats:
    out = trimmed(trim, len(ordered))
    return _mean(ordered[out : len(ordered) - out])


def _multi_krum(updates: Updates, out: Floats, byzantine: int) -> Told:
    count = len(updates.scales)
    squares = np.zeros((count, count))
    for _, piece in _pieces(updates):
        for one in range(count - 1):
            parted = piece[one + 1 :] - piece[one]
            parted *= parted
            squares[one, one + 1 :] += _sums(parted)
    squares += squares.T
    chosen = _chosen(squares, byzantine)
    cosines = _Cosines(count)
    for start, piece in _pieces(updates):
        mean = _mean(piece[chosen])
        out[start : start + PIECE] = mean[: len(out) - start]
        cosines.see(piece, mean)
    return Told(cosines.told(), sorted(set(range(count)) - set(chosen)))


def _chosen(squares: Floats, byzantine: int) -> list[int]:
    count = len(squares)
    near = max(count - byzantine - 2, 1)
    scores = []
    for one in range(count):
        others = sorted(float(squares[one, other]) for other in range(count) if other != one)
        scores.append(math.fsum(others[:near]))
    best = sorted(range(count), key=lambda one: (scores[one], one))
    return sorted(best[: max(count - byzantine, 1)])


class _Cosines:
    """Made beside Δ, piece by piece."""

    def __init__(self, count: int) -> None:
        self._inner = np.zeros(count)
        self._squares = np.zeros(count)
        self._mean = np.zeros(1)

    def see(self, piece: Floats, mean: Floats) -> None:
        self._inner += _sums(piece * mean)
        self._squares += _sums(piece * piece)
        self._mean += _sums((mean * mean)[np.newaxis])

    def told(self) -> list[float]:
        sizes = np.sqrt(self._squares) * np.sqrt(self._mean)
        return [float(inner / size) if size else 0.0 for inner, size in zip(self._inner, sizes, strict=True)]


def _pieces(updates: Updates) -> Iterator[tuple[int, Floats]]:
    """(n, `PIECE`) changes in float64, scaled; the last piece is filled up with zeros."""
    scales = updates.scales[:, np.newaxis]
    for begin, block in updates.blocks():
        for at in range(0, block.shape[1], PIECE):
            part = block[:, at : at + PIECE]
            piece = np.zeros((len(part), PIECE))
            np.multiply(part, scales, out=piece[:, : part.shape[1]])
            piece += 0.0  # so that no zero is negative: sorting does not say which of the two comes first
            yield begin + at, piece


def _mean(rows: Floats) -> Floats:
    total = np.zeros(rows.shape[1])
    for row in rows:
        total += row
    total /= float(len(rows))
    return total


def _sums(rows: Floats) -> Floats:
    """Of each row; a row has `PIECE` numbers."""
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        rows = rows[:, :half] + rows[:, half:]
    return rows[:, 0]
