"""Seeded random bits, the same for ever and on every machine.

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the seed
its 128-bit key, its counter from 1 on: the raw 64-bit words of ``numpy.random.Philox``, which numpy promises
not to change (NEP 19). Nothing of numpy's distributions is used; they may change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Draw:
    """A stream of random bits. Each call goes on where the last one ended, at the next whole word."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.Philox(key=seed)

    def fractions(self, count: int) -> NDArray[np.float64]:
        """``count`` numbers of [0, 1), multiples of 2⁻³²: the words' lower halves first."""
        words = self._words.random_raw(-(-count // 2)).astype("<u8").view("<u4")
        return words[:count] * 2.0**-32

    def signs(self, count: int) -> NDArray[np.float32]:
        """``count`` times +1 (bit 0) or -1, the words' lowest bits first; ``count`` is a multiple of 64."""
        words = self._words.random_raw(count // 64).astype("<u8").view(np.uint8)
        bits = np.unpackbits(words, bitorder="little")
        return np.float32(1.0) - np.float32(2.0) * bits.astype(np.float32)
