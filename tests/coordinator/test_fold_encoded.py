"""Encoded updates at the coordinator: opened, measured and added as what they stand for, or unfit by name."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compressors import decode, encode
from coordinator.fold import BLOCK, Folder
from coordinator.looking import Looked, look
from coordinator.opening import Expected
from coordinator.strategies import Weight
from schemas.encodings import ENCODINGS, FLOAT32, Encoding, EncodingName, encoded_bytes
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN
from tests.coordinator.stored_updates import Sender, bodies_of, deltas, expected, layout_of

COUNT = 12_000  # float32 still goes inline
Floats = NDArray[np.float32]


def of(name: str, count: int = COUNT) -> Encoding:
    return Encoding(name, count // 20 if name == "topk" else 0)  # type: ignore[arg-type]  # of `ENCODINGS`


def asked(encoding: Encoding, count: int = COUNT) -> Expected:
    return replace(expected(count), encoding=encoding)


def stored(data: bytes, encoding: Encoding, count: int = COUNT, chunk_bytes: int = 0) -> bytes:
    sender = Sender(count, changes={"encoding": encoding}, chunk_bytes=chunk_bytes)
    return sender.stored(np.frombuffer(data, np.uint8), 3)


def looked(folder: Folder, body: bytes, expects: Expected) -> Looked:
    bodies, (name,) = bodies_of(body)
    return look(folder, bodies, name, expects)


@pytest.mark.parametrize("chunk_bytes", [0, 4_099])
@pytest.mark.parametrize("name", ENCODINGS)
def test_what_is_folded_is_what_the_update_stands_for(name: str, chunk_bytes: int) -> None:
    encoding, values, folder = of(name), deltas(1, COUNT, 1)[0] / 1e4, Folder(layout_of(COUNT))
    data = encode(encoding, values, 5)
    stands_for = np.empty(COUNT, np.float32)
    decode(encoding, data, stands_for)
    found = looked(folder, stored(data, encoding, chunk_bytes=chunk_bytes), asked(encoding))
    assert found.problem == ""
    assert folder.opened.tobytes() == stands_for.tobytes()
    assert found.norm == pytest.approx(float(np.sqrt(np.square(stands_for.astype(float)).sum())), rel=1e-5)
    folder.add(Weight(3))
    assert folder.total().tolist() == (stands_for.astype(np.float64) * 3).tolist()


def test_encoded_and_plain_updates_fold_one_after_the_other_in_the_same_buffers() -> None:
    folder, total = Folder(layout_of(COUNT)), np.zeros(COUNT)
    for name in ("eden2", "float32", "topk", "q4", "float32", "float16"):
        encoding, values, out = of(name), deltas(2, COUNT, 1)[0] / 1e4, np.empty(COUNT, np.float32)
        data = encode(encoding, values, 5)
        decode(encoding, data, out)
        assert looked(folder, stored(data, encoding), asked(encoding)).problem == ""
        folder.add(Weight(1))
        total += out
    assert folder.total().tolist() == total.tolist()


def test_float32_is_taken_whatever_the_job_asks_for() -> None:
    values = deltas(1, COUNT, 1)[0] / 1e4
    assert looked(Folder(layout_of(COUNT)), Sender(COUNT).stored(values), asked(of("eden1"))).problem == ""


@pytest.mark.parametrize("expects", [FLOAT32, of("q8"), Encoding("topk", 7)])
@pytest.mark.parametrize("sent", [of("q4"), of("topk")])
def test_an_encoding_that_the_job_does_not_ask_for_is_unfit(sent: Encoding, expects: Encoding) -> None:
    data = encode(sent, np.ones(COUNT, np.float32), 1)
    problem = looked(Folder(layout_of(COUNT)), stored(data, sent), asked(expects)).problem
    assert problem.startswith(f"encoding: {sent.name}")
    assert expects.name in problem


@pytest.mark.parametrize("chunk_bytes", [0, 4_099])
@pytest.mark.parametrize("name", ENCODINGS)
def test_an_encoded_update_of_another_size_is_unfit_before_it_is_opened(name: str, chunk_bytes: int) -> None:
    encoding = of(name)
    data = bytes(encoded_bytes(encoding, COUNT) + 1)
    folder = Folder(layout_of(COUNT))
    problem = looked(folder, stored(data, encoding, chunk_bytes=chunk_bytes), asked(encoding)).problem
    assert problem == f"length: {len(data)} bytes where {len(data) - 1} belong"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "q8", "q4", "eden1", "eden4", "topk"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_found_in_what_the_update_stands_for(name: str, bad: float) -> None:
    encoding = of(name)
    data = bytearray(encode(encoding, np.ones(COUNT, np.float32), 1))
    at = {"topk": len(data) // 2, "eden1": 8, "eden4": 8}.get(name, 0)
    number = np.float16(bad).tobytes() if name == "float16" else np.float32(bad).tobytes()
    number = number[2:] if name == "bfloat16" else number
    data[at : at + len(number)] = number
    problem = looked(Folder(layout_of(COUNT)), stored(bytes(data), encoding), asked(encoding)).problem
    assert problem.startswith("finite: ")


@settings(deadline=None, max_examples=150)
@given(name=st.sampled_from(ENCODINGS), count=st.integers(20, 200), draw=st.data())
def test_no_bytes_do_more_than_make_an_update_unfit(
    name: EncodingName, count: int, draw: st.DataObject
) -> None:
    encoding = of(name, count)
    size = encoded_bytes(encoding, count)
    data = draw.draw(st.binary(min_size=max(size - 1, 1), max_size=size + 1) | st.just(b"\xff" * size))
    folder = Folder(layout_of(count))
    found = looked(folder, stored(data, encoding, count), asked(encoding, count))
    assert found.problem.split(":")[0] in ("", "finite", "length", "malformed")
    assert len(folder.opened) == count
    if not found.problem:
        assert np.isfinite(folder.opened).all()


def test_an_impossible_number_of_kept_coordinates_is_unfit() -> None:
    for keep in (0, COUNT + 1, 2**32 - 1):
        encoding = Encoding("topk", keep)
        found = looked(Folder(layout_of(COUNT)), stored(bytes(80), encoding), asked(of("topk")))
        assert found.problem.startswith("encoding: topk")


def test_places_that_do_not_rise_are_unfit_by_name() -> None:
    data, encoding = np.array([3, 2], "<u4").tobytes() + bytes(8), Encoding("topk", 2)
    found = looked(Folder(layout_of(COUNT)), stored(data, encoding), asked(encoding))
    assert found.problem.startswith("malformed: places of top-k")


@pytest.mark.parametrize("name", ENCODINGS)
def test_memory_is_the_layouts_and_what_the_update_takes_encoded(name: str) -> None:
    count = 16 * BLOCK
    encoding = of(name, count)
    data = encode(encoding, deltas(1, count, 1)[0] / 1e4, 5)
    bodies, (digest,) = bodies_of(stored(data, encoding, count, CHUNK_BYTES_CHOSEN_MIN))
    peaks = []
    for updates in (1, 1, 3):  # the first has what is imported and cached on first use
        tracemalloc.start()
        folder = Folder(layout_of(count))
        for _ in range(updates):
            assert look(folder, bodies, digest, asked(encoding, count)).problem == ""
            folder.add(Weight(1))
        folder.total()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Beside the buffers: blocks of coordinates. One more vector of any kind would be more than that.
    assert peaks[1] < 12 * count + len(data) + 28 * BLOCK
    assert peaks[2] < peaks[1] + 4 * count / 10
