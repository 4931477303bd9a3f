"""Folding gives the bits of the plain float64 reference, in the order of the log, and takes nothing unfit."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker.bodies import Bodies
from coordinator.fold import BLOCK, Expected, Folder, Unfit, look, stored, stored_name
from schemas import events as e
from schemas.envelope import Order, content_key, new_clear, seal, sign
from schemas.limits import CHUNK_BYTES_MIN
from schemas.models import DELTA, Layout, Tensor
from schemas.sealing import aead_seal
from tests.schemas.parties import DEVICE, FEDERATION, OTHER_BOX, OTHER_FEDERATION, UPDATE_BOX, secret
from tests.sim.disk import SimFiles

ROOT = Path(__file__).resolve().parents[2]
BASE = secret("base model")
Floats = NDArray[np.float32]
SIZES = st.one_of(
    st.integers(1, 20),
    st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1]),
)
WEIGHTS = st.lists(st.one_of(st.integers(1, 5), st.integers(1, 10_000_000)), min_size=1, max_size=5)


def layout_of(count: int) -> Layout:
    """``count`` trained coordinates, then frozen ones and a counter."""
    return Layout(
        job="job",
        tensors=[
            Tensor("weight", [count], "float32", "trained"),
            Tensor("embedding", [3], "float32", "frozen"),
            Tensor("num_batches_tracked", [], "int64", "counter"),
        ],
    )


def deltas(seed: int, count: int, updates: int) -> list[Floats]:
    """Changes of very different sizes, so that the order of additions shows in the bits."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)).astype("<f4")
        for _ in range(updates)
    ]


@dataclass
class Sender:
    """Makes stored updates; each field is one way to go wrong."""

    count: int = 8
    recipient: bytes = UPDATE_BOX.public
    federation: bytes = FEDERATION
    event: e.Event | None = None
    changes: dict[str, object] = field(default_factory=dict)
    chunk_bytes: int = 0  # 0: inline

    def stored(self, delta: Floats, samples: int = 1) -> bytes:
        content = delta.tobytes()
        update = {
            "job": "job",
            "request": 7,
            "base": BASE,
            "vectors": [e.Vector(DELTA, self.count)],
            "samples": samples,
            "steps": 1,
            "train_s": 0.5,
            "metrics": {},
            "evaluation": {},
            "content": sha256(content).digest(),
            "inline": b"" if self.chunk_bytes else content,
        }
        event = self.event or e.Update(**update | self.changes)  # type: ignore[arg-type]  # changed on purpose
        chunked = len(content) if self.chunk_bytes else 0
        clear = new_clear(self.federation, DEVICE.public, self.recipient, chunked, self.chunk_bytes)
        encryption, context = content_key(secret("content key"), clear)
        chunks = [
            aead_seal(encryption, index, clear.chunks, content[at : at + self.chunk_bytes], context)
            for index, at in enumerate(range(0, chunked, self.chunk_bytes or 1))
        ]
        digests = tuple(sha256(chunk).digest() for chunk in chunks)
        sealed = seal(clear, secret("content key"), self.recipient, e.encode_event(event), digests)
        return stored(sign(sealed, DEVICE, Order(0, 1))) + b"".join(chunks)


def expected(count: int) -> Expected:
    return Expected(FEDERATION, "job", 7, BASE, layout_of(count), UPDATE_BOX)


def bodies_of(*bodies: bytes) -> tuple[Bodies, list[bytes]]:
    found = Bodies(SimFiles(), Path("/bodies"))
    names = [sha256(body).digest() for body in bodies]
    for name, body in zip(names, bodies, strict=True):
        found.put(stored_name(UPDATE_BOX.id, name), [body])
    return found, names


def read(folder: Folder, body: bytes, count: int) -> None:
    """Open an update into the folder's buffer. Raises `Unfit`."""
    bodies, (name,) = bodies_of(body)
    file = bodies.open(name.hex())
    try:
        folder.read(file, expected(count))
    finally:
        file.close()


def fold(updates: list[tuple[Floats, int]], base: bytes, *, chunk_bytes: int = CHUNK_BYTES_MIN) -> bytes:
    count = len(updates[0][0])
    folder = Folder(layout_of(count))
    for delta, samples in updates:
        read(folder, Sender(count, chunk_bytes=chunk_bytes).stored(delta, samples), count)
        folder.add(samples)
    assert (folder.folded, folder.samples) == (len(updates), sum(samples for _, samples in updates))
    return bytes(folder.finish(base))


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
        folder.add(4)
    assert bytes(folder.finish(base_model(9))) == reference([(second, 4)], base_model(9))


STATUS = e.DeviceStatus(agent="1", cores=1, memory_bytes=1, power="mains", tasks=[], samples={})
UNFIT = {
    "another request's key": (Sender(recipient=OTHER_BOX.public), "recipient"),
    "another federation": (Sender(federation=OTHER_FEDERATION), "recipient"),
    "another kind of event": (Sender(event=STATUS), "type"),
    "an event of the coordinator": (Sender(event=e.Enrolled()), "malformed"),
    "another job": (Sender(changes={"job": "other"}), "job"),
    "another request": (Sender(changes={"request": 8}), "job"),
    "another base": (Sender(changes={"base": bytes(32)}), "base"),
    "another vector": (Sender(changes={"vectors": [e.Vector("control", 8)]}), "layout"),
    "a longer vector": (Sender(changes={"vectors": [e.Vector(DELTA, 9)]}), "layout"),
    "two vectors": (Sender(changes={"vectors": [e.Vector(DELTA, 8)] * 2}), "layout"),
    "too little inline": (Sender(changes={"inline": bytes(31)}), "length"),
    "too much inline": (Sender(changes={"inline": bytes(33)}), "length"),
    "nothing inline": (Sender(changes={"inline": b""}), "length"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_answer_its_request_is_unfit_by_name(case: str) -> None:
    sender, kind = UNFIT[case]
    bodies, (name,) = bodies_of(sender.stored(deltas(1, 8, 1)[0]))
    looked = look(Folder(layout_of(8)), bodies, name, expected(8))
    assert looked.problem.split(":")[0] == kind
    assert looked.update is None


def test_a_sound_update_is_fit_and_shows_what_it_says() -> None:
    bodies, (name,) = bodies_of(Sender().stored(np.full(8, 0.5, "<f4"), samples=12))
    looked = look(Folder(layout_of(8)), bodies, name, expected(8))
    assert (looked.problem, looked.norm) == ("", 2.0**0.5)
    assert looked.update is not None
    assert looked.update.samples == 12


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FA00000, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, BLOCK + 4])
def test_nan_and_infinity_are_found_wherever_they_are(bits: int, at: int) -> None:
    count = BLOCK + 5
    raw = np.ones(count, "<u4")
    raw[at] = bits
    bodies, (name,) = bodies_of(Sender(count, chunk_bytes=CHUNK_BYTES_MIN).stored(raw.view("<f4")))
    looked = look(Folder(layout_of(count)), bodies, name, expected(count))
    assert looked.problem.split(":")[0] == "finite"
    assert looked.norm == 0.0, "JSON and msgpack readers need not know NaN"


@pytest.mark.parametrize("back", [1, 100, 5_000, 16_300])
def test_an_altered_stored_update_is_unfit(back: int) -> None:
    body = bytearray(Sender(4_000, chunk_bytes=CHUNK_BYTES_MIN).stored(deltas(1, 4_000, 1)[0]))
    body[-back] ^= 1
    with pytest.raises(Unfit, match=r"^forged: "):
        read(Folder(layout_of(4_000)), bytes(body), 4_000)


@given(keep=st.integers(0, 17_000))
def test_a_stored_update_that_was_cut_short_is_unfit(keep: int) -> None:
    body = Sender(4_000, chunk_bytes=CHUNK_BYTES_MIN).stored(deltas(1, 4_000, 1)[0])
    with pytest.raises(Unfit, match=r"^(length|malformed|forged): "):
        read(Folder(layout_of(4_000)), body[: min(keep, len(body) - 1)], 4_000)


def test_chunks_in_another_order_are_unfit() -> None:
    size = CHUNK_BYTES_MIN + 16
    body = Sender(3 * 1024, chunk_bytes=CHUNK_BYTES_MIN).stored(deltas(1, 3 * 1024, 1)[0])
    head, one, two, three = (
        body[: -3 * size],
        body[-3 * size : -2 * size],
        body[-2 * size : -size],
        body[-size:],
    )
    read(Folder(layout_of(3 * 1024)), head + one + two + three, 3 * 1024)
    with pytest.raises(Unfit, match=r"^forged: "):
        read(Folder(layout_of(3 * 1024)), head + two + one + three, 3 * 1024)


def test_an_unfit_update_leaves_no_trace_in_the_sum() -> None:
    good, bad = deltas(2, 2_000, 2)
    sender = Sender(2_000, chunk_bytes=CHUNK_BYTES_MIN)
    folder = Folder(layout_of(2_000))
    read(folder, sender.stored(good, 3), 2_000)
    folder.add(3)
    altered = bytearray(sender.stored(bad))
    altered[-1] ^= 1
    with pytest.raises(Unfit):
        read(folder, bytes(altered), 2_000)
    assert bytes(folder.finish(base_model(2_000))) == reference([(good, 3)], base_model(2_000))


def test_an_update_of_another_size_is_unfit_for_a_chunked_layout() -> None:
    sender = replace(Sender(1_100, chunk_bytes=CHUNK_BYTES_MIN), count=1_000)
    with pytest.raises(Unfit, match=r"^length: 4400 bytes where 4000 belong"):
        read(Folder(layout_of(1_000)), sender.stored(deltas(1, 1_100, 1)[0]), 1_000)


def peak_bytes(bodies: Bodies, name: bytes, count: int, updates: int) -> int:
    """The most memory that folding ``updates`` updates held at a time, the folder's own included."""
    tracemalloc.start()
    try:
        folder = Folder(layout_of(count))
        for _ in range(updates):
            assert look(folder, bodies, name, expected(count)).problem == ""
            folder.add(1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    count = 4 * BLOCK
    bodies, (name,) = bodies_of(Sender(count, chunk_bytes=CHUNK_BYTES_MIN).stored(deltas(1, count, 1)[0]))
    peak_bytes(bodies, name, count, 2)  # what is imported and cached on first use
    few, many = peak_bytes(bodies, name, count, 2), peak_bytes(bodies, name, count, 50)
    assert many < few + 4 * count / 10, "not even a tenth of one more update is held"
