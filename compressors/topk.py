"""The k largest coordinates alone, and what was left out added to the next change: top-k with error feedback
(Stich et al. 2018, "Sparsified SGD with memory"; Karimireddy et al. 2019, "Error feedback fixes SignSGD and
other gradient compression schemes", algorithm 1).

With e₀ = 0 and δₜ what a device learned in its t-th update:

    pₜ = δₜ + eₜ;  sent: the k coordinates of pₜ that are largest in amount;  eₜ₊₁ = pₜ - sent

So sent₁ + … + sentₜ + eₜ₊₁ = δ₁ + … + δₜ: nothing is lost, it comes later. Biased in each update.

Data: k places, u32, rising; then the k numbers at them, float32; little-endian.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.encodings import KEPT_BYTES
from schemas.errors import Malformed

BLOCK = 65_536


def encode(values: NDArray[np.float32], keep: int) -> bytes:
    """The ``keep`` largest coordinates, exactly; of those that are equally large, the first."""
    places = _largest(values, keep)
    return places.tobytes() + values[places].astype("<f4").tobytes()


def _largest(values: NDArray[np.float32], keep: int) -> NDArray[np.uint32]:
    """By blocks: a device has no memory to spare for the place of every coordinate."""
    amounts = np.abs(values)
    amounts.partition(len(values) - keep)
    least = amounts[len(values) - keep]
    equal = keep - int(np.count_nonzero(amounts > least))
    del amounts
    found = []
    for at in range(0, len(values), BLOCK):
        amount = np.abs(values[at : at + BLOCK])
        chosen = amount > least
        ties = np.flatnonzero(amount == least)[:equal]
        chosen[ties] = True
        equal -= len(ties)
        found.append((np.flatnonzero(chosen) + at).astype("<u4"))
    return np.concatenate(found)


def decode(data: bytes | bytearray | memoryview, out: NDArray[np.float32]) -> None:
    """Zeros but for what was sent. Raises `Malformed`."""
    places, numbers = parts(data, len(out))
    out.fill(0.0)
    out[places] = numbers


def subtract_sent(data: bytes, values: NDArray[np.float32]) -> None:
    """Turn what was to be sent into what was left out, in place."""
    places, _ = parts(data, len(values))
    values[places] = 0.0


def parts(data: bytes | bytearray | memoryview, count: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Places, all below ``count``, and numbers. Raises `Malformed`."""
    keep = len(data) // KEPT_BYTES
    places = np.frombuffer(data, "<u4", keep)
    if not (places[1:] > places[:-1]).all() or (keep and places[-1] >= count):
        raise Malformed("places of top-k that do not rise, or lie outside")
    return places, np.frombuffer(data, "<f4", keep, offset=4 * keep)
