"""What is random in an encoding has the right mean; what is left out comes later.

The statistical test: over M seeds, each coordinate's mean error is compared with its standard error. Of an
encoding that is unbiased, a mean lies beyond `SIGMAS` of them by chance with a probability of 7·10⁻¹⁰ (QSGD:
Hoeffding's bound, as errors lie in an interval of one step, half of which stands for the deviation) or of
4·10⁻¹¹ (EDEN: of a normal number, which a mean of hundreds nearly is). With 320 coordinates and 6 encodings
one in two million sets of seeds would fail; the seeds are fixed, so what passes passes again.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compressors import decode, encode, topk
from schemas.encodings import Encoding, EncodingName

Floats = NDArray[np.float32]
SIGMAS, SEEDS, COUNT = 6.6, 600, 320


STEPS = {"q8": 127, "q4": 7}


def furthest(name: EncodingName, values: Floats) -> float:
    """By how many standard errors the mean error of a coordinate misses zero at most."""
    encoding, out = Encoding(name), np.empty(len(values), np.float32)
    errors = np.empty((SEEDS, len(values)))
    for seed in range(SEEDS):
        decode(encoding, encode(encoding, values, seed), out)
        errors[seed] = out.astype(np.float64) - values
    largest = np.abs(values).max()
    deviation = largest / STEPS[name] / 2 if name in STEPS else errors.std(axis=0)
    # Rounding in float32 is no bias: it is far below the error of one encoding.
    spread = deviation / np.sqrt(SEEDS) + 1e-6 * largest
    return float((np.abs(errors.mean(axis=0)) / spread).max())


@pytest.mark.parametrize("name", ["q8", "q4", "eden1", "eden2", "eden3", "eden4"])
def test_an_encoding_that_rounds_at_random_is_unbiased(name: EncodingName) -> None:
    assert furthest(name, np.random.default_rng(1).standard_normal(COUNT).astype("<f4")) < SIGMAS


def test_the_test_finds_a_bias() -> None:
    assert furthest("bfloat16", np.random.default_rng(1).standard_normal(COUNT).astype("<f4")) > SIGMAS


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 300), rounds=st.integers(1, 12), seed=st.integers(0, 2**32), part=st.integers(1, 40)
)
def test_all_that_was_sent_and_what_is_left_is_all_that_was_learned(
    count: int, rounds: int, seed: int, part: int
) -> None:
    rng, encoding = np.random.default_rng(seed), Encoding("topk", -(-count // part))
    # Whole numbers, so that no sum is rounded.
    learned, sent = np.zeros(count, np.float32), np.zeros(count, np.float32)
    left, out = np.zeros(count, np.float32), np.empty(count, np.float32)
    for _ in range(rounds):
        delta = rng.integers(-1_000, 1_000, count).astype("<f4")
        learned += delta
        left += delta
        data = encode(encoding, left, 0)
        topk.subtract_sent(data, left)
        decode(encoding, data, out)
        sent += out
    assert (sent + left).tobytes() == learned.tobytes()
