"""Folding gives the bits of the plain float64 reference, in the order of the log, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.bodies import Bodies
from coordinator.fold import BLOCK, Folder
from coordinator.looking import look
from coordinator.opening import Unfit
from coordinator.strategies import Weight, begun, server_optimiser
from schemas.jobs import ServerSettings
from schemas.limits import CHUNK_BYTES_MIN
from tests.coordinator.stored_updates import Floats, Sender, bodies_of, deltas, expected, layout_of, read

ROOT = Path(__file__).resolve().parents[2]
SIZES = st.one_of(
    st.integers(1, 20),
    st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1]),
)
WEIGHTS = st.lists(st.one_of(st.integers(1, 5), st.integers(1, 10_000_000)), min_size=1, max_size=5)


def fold(updates: list[tuple[Floats, int]], base: bytes, *, chunk_bytes: int = CHUNK_BYTES_MIN) -> bytes:
    count = len(updates[0][0])
    folder = Folder(layout_of(count))
    for delta, samples in updates:
        read(folder, Sender(count, chunk_bytes=chunk_bytes).stored(delta, samples), count)
        folder.add(Weight(samples))
    assert (folder.folded, folder.samples) == (len(updates), sum(samples for _, samples in updates))
    return finished(folder, base)


def finished(folder: Folder, base: bytes) -> bytes:
    """What the folder's sum makes of ``base`` under FedAvg."""
    optimiser = server_optimiser(ServerSettings())
    return bytes(folder.finish(base, optimiser, begun(optimiser, len(folder.opened))))


def reference(updates: list[tuple[Floats, int]], base: bytes) -> bytes:
    """FedAvg in plain float64, one update after the other, over whole vectors."""
    count = len(updates[0][0])
    total = np.zeros(count)
    for delta, samples in updates:
        total = total + delta.astype(np.float64) * float(samples)
    mean = total / float(sum(samples for _, samples in updates))
    trained = np.frombuffer(base, "<f4", count).astype(np.float64) + mean
    return trained.astype("<f4").tobytes() + base[4 * count :]


def base_model(count: int) -> bytes:
    return np.random.default_rng(1).standard_normal(count).astype("<f4").tobytes() + bytes(range(100, 120))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), count=SIZES, weights=WEIGHTS)
def test_folding_has_the_bits_of_the_sequential_reference(seed: int, count: int, weights: list[int]) -> None:
    updates = list(zip(deltas(seed, count, len(weights)), weights, strict=True))
    assert fold(updates, base_model(count)) == reference(updates, base_model(count))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), count=SIZES)
def test_the_norm_is_the_l2_norm_to_a_millionth(seed: int, count: int) -> None:
    (delta,) = deltas(seed, count, 1)
    folder = Folder(layout_of(count))
    read(folder, Sender(count, chunk_bytes=CHUNK_BYTES_MIN).stored(delta), count)
    assert folder.norm() == pytest.approx(float(np.linalg.norm(delta.astype(np.float64))), rel=1e-6)


def test_the_order_of_folding_is_part_of_the_result() -> None:
    tenth, large = np.array([0.1], "<f4"), np.array([2.0**60], "<f4")
    base = bytes(4)
    small_last = fold([(large, 1), (-large, 1), (tenth, 1)], base)
    small_first = fold([(tenth, 1), (large, 1), (-large, 1)], base)
    assert np.frombuffer(small_last, "<f4")[0] == np.float32(np.float64(tenth[0]) / 3.0)
    assert np.frombuffer(small_first, "<f4")[0] == 0.0, (
        "lost beside the large one, so order must be the log's"
    )


@pytest.mark.parametrize("count", [8, 5_000, 12_000])
def test_chunked_and_inline_updates_give_the_same_model(count: int) -> None:
    updates = [(delta, 3) for delta in deltas(5, count, 3)]
    inline, chunked = (fold(updates, base_model(count), chunk_bytes=size) for size in (0, CHUNK_BYTES_MIN))
    assert inline == chunked == reference(updates, base_model(count))


SCRIPT = """
from hashlib import sha256
from tests.coordinator.test_fold import base_model, deltas, fold
count = 70_001
updates = [(delta, weight) for delta, weight in zip(deltas(3, count, 4), (1, 700, 13, 999_983))]
print(sha256(fold(updates, base_model(count))).hexdigest())
"""


def folded_elsewhere(hash_seed: str) -> str:
    env = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_another_process_with_another_hash_seed_gives_the_same_bits() -> None:
    count = 70_001
    updates = list(zip(deltas(3, count, 4), (1, 700, 13, 999_983), strict=True))
    here = sha256(fold(updates, base_model(count))).hexdigest()
    assert [folded_elsewhere("1"), folded_elsewhere("2")] == [here, here]


def test_frozen_and_counter_bytes_stay_as_they_are() -> None:
    (delta,) = deltas(9, 6, 1)
    base = base_model(6)
    model = fold([(delta, 5)], base)
    assert model[24:] == base[24:]
    assert model[:24] != base[:24]


def test_a_cleared_folder_folds_as_a_new_one_does() -> None:
    first, second = deltas(11, 9, 2)
    folder = Folder(layout_of(9))
    for delta in (first, second):
        folder.clear()
        read(folder, Sender(9).stored(delta), 9)
        folder.add(Weight(4))
    assert finished(folder, base_model(9)) == reference([(second, 4)], base_model(9))


def test_an_unfit_update_leaves_no_trace_in_the_sum() -> None:
    good, bad = deltas(2, 2_000, 2)
    sender = Sender(2_000, chunk_bytes=CHUNK_BYTES_MIN)
    folder = Folder(layout_of(2_000))
    read(folder, sender.stored(good, 3), 2_000)
    folder.add(Weight(3))
    altered = bytearray(sender.stored(bad))
    altered[-1] ^= 1
    with pytest.raises(Unfit):
        read(folder, bytes(altered), 2_000)
    assert finished(folder, base_model(2_000)) == reference([(good, 3)], base_model(2_000))


def peak_bytes(bodies: Bodies, name: bytes, count: int, updates: int) -> int:
    """The most memory that folding ``updates`` updates held at a time, the folder's own included."""
    tracemalloc.start()
    try:
        folder = Folder(layout_of(count))
        for _ in range(updates):
            assert look(folder, bodies, name, expected(count)).problem == ""
            folder.add(Weight(1))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    count = 4 * BLOCK
    bodies, (name,) = bodies_of(Sender(count, chunk_bytes=CHUNK_BYTES_MIN).stored(deltas(1, count, 1)[0]))
    peak_bytes(bodies, name, count, 2)  # what is imported and cached on first use
    few, many = peak_bytes(bodies, name, count, 2), peak_bytes(bodies, name, count, 50)
    assert many < few + 4 * count / 10, "not even a tenth of one more update is held"
