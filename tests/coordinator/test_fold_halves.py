"""An update that is opened in two halves at a time: the same bits, the same problems, a usable folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import ParamSpec, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.bodies import Bodies
from broker.system import system_ports
from compressors import encode
from coordinator import fold
from coordinator.fold import BLOCK, Folder
from coordinator.looking import Looked, end, look, look_beside
from coordinator.opening import Expected, Unfit
from coordinator.replay import replay
from coordinator.stored import stored_name
from coordinator.strategies import Weight
from schemas.encodings import ENCODINGS
from schemas.limits import CHUNK_BYTES_MIN, CHUNK_OVERHEAD_BYTES
from tests.coordinator.stored_updates import Floats, Sender, bodies_of, deltas, expected, layout_of
from tests.coordinator.test_aggregation import CHUNKED, HOME, models, recorded
from tests.coordinator.test_fold_encoded import asked, of, stored
from tests.coordinator.test_scaffold import layout_of as scaffold_layout_of
from tests.sim.machine import SimOffload

COUNT = BLOCK + 2_345
SIZES = [CHUNK_BYTES_MIN, 3 * CHUNK_BYTES_MIN, 40_000, 40_002, 4 * BLOCK, 4 * COUNT - 4, 4 * COUNT]
Look = tuple[Bodies, bytes, Expected]
How = Callable[[Folder, Bodies, bytes, Expected], Looked]
P = ParamSpec("P")
R = TypeVar("R")


@pytest.fixture(autouse=True)
def _none_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "HALVES_BYTES_MIN", 0)


def backwards(folder: Folder, bodies: Bodies, digest: bytes, expects: Expected) -> Looked:
    """`look_beside`, the second half before the first."""
    with closing(bodies.open(stored_name(expects.key.id, digest))) as file:
        try:
            opening = folder.begin(file, expects, halves=True)
        except Unfit as error:
            return Looked(problem=str(error))
        for part in reversed(opening.parts):
            folder.open_part(file, opening, part)
        return end(folder, opening)


def beside(folder: Folder, bodies: Bodies, digest: bytes, expects: Expected) -> Looked:
    """In threads."""
    return asyncio.run(look_beside(system_ports().offload, folder, bodies, digest, expects))


def update(name: str, values: Floats, chunk_bytes: int) -> Look:
    encoding = of(name, len(values))
    data = encode(encoding, values / np.float32(1e4), 5)
    bodies, (digest,) = bodies_of(stored(data, encoding, len(values), chunk_bytes))
    return bodies, digest, asked(encoding, len(values))


def all_bits(folder: Folder) -> list[bytes]:
    return [folder.total().tobytes(), folder._controls.tobytes(), folder.opened.tobytes()]


@settings(deadline=None, max_examples=40)
@given(
    names=st.lists(st.sampled_from(ENCODINGS), min_size=2, max_size=3),
    count=st.sampled_from([COUNT, 2 * BLOCK, 3_001]),
    chunk_bytes=st.sampled_from(SIZES),
    seed=st.integers(0, 2**32),
    centred=st.booleans(),
    controlled=st.booleans(),
)
def test_halves_in_any_order_have_the_bits_of_one_after_the_other(
    names: list[str], count: int, chunk_bytes: int, seed: int, centred: bool, controlled: bool
) -> None:
    centre, *values = deltas(seed, count, len(names) + 1)
    updates = [update(name, each, chunk_bytes) for name, each in zip(names, values, strict=True)]
    bits = []
    for how in (look, backwards, beside):
        folder = Folder(scaffold_layout_of("job", count, controlled=controlled))
        folder.centre = centre if centred else None
        found = []
        for number, each in enumerate(updates):
            found.append(how(folder, *each))
            folder.add(Weight(samples=3 + number, scale=0.7, way=1.3))
        bits.append((found, all_bits(folder)))
    assert bits[0] == bits[1] == bits[2]
    assert [each.problem for each in bits[0][0]] == [""] * len(names)


@pytest.mark.parametrize("chunk_bytes", SIZES)
def test_only_chunks_that_share_no_coordinate_are_parted(chunk_bytes: int) -> None:
    folder, (bodies, digest, expects) = (
        Folder(layout_of(COUNT)),
        update("float32", deltas(1, COUNT, 1)[0], chunk_bytes),
    )
    with closing(bodies.open(stored_name(expects.key.id, digest))) as file:
        parts = folder.begin(file, expects, halves=True).parts
    assert len(parts) == (1 if chunk_bytes % 4 or chunk_bytes >= 4 * COUNT else 2)


BEFORE, BAD = deltas(2, COUNT, 2)


def holding_one() -> Folder:
    """A folder that owes the sum an update of weight 3."""
    folder = Folder(layout_of(COUNT))
    assert look(folder, *update("float32", BEFORE, CHUNK_BYTES_MIN)).problem == ""
    folder.add(Weight(3))
    return folder


SUM_OF_ONE = (BEFORE / np.float32(1e4)).astype(np.float64) * 3


@pytest.mark.parametrize("how", [backwards, beside])
@pytest.mark.parametrize("damaged", [[0], [10], [60], [66], [10, 60]])
@pytest.mark.parametrize("cut", [0, 5 * CHUNK_BYTES_MIN, 60 * CHUNK_BYTES_MIN])
def test_damage_in_either_half_is_told_as_before_and_leaves_no_trace(
    how: How, damaged: list[int], cut: int
) -> None:
    body = bytearray(Sender(COUNT, chunk_bytes=CHUNK_BYTES_MIN).stored(BAD))
    sealed = CHUNK_BYTES_MIN + CHUNK_OVERHEAD_BYTES
    chunks_at = len(body) - 4 * COUNT - CHUNK_OVERHEAD_BYTES * -(-4 * COUNT // CHUNK_BYTES_MIN)
    for chunk in damaged:
        body[chunks_at + chunk * sealed + 9] ^= 1
    bodies, (digest,) = bodies_of(bytes(body[: len(body) - cut]))
    told = look(holding_one(), bodies, digest, expected(COUNT)).problem
    assert told.split(":")[0] in ("forged", "length")
    folder = holding_one()
    assert how(folder, bodies, digest, expected(COUNT)).problem == told
    assert folder.total().tobytes() == SUM_OF_ONE.tobytes()


class Stopped(SimOffload):
    """Its caller is cancelled at one of its calls."""

    def __init__(self, at: int) -> None:
        self.left = at

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        self.left -= 1
        if self.left < 0:
            raise asyncio.CancelledError
        return await super().run(function, *args, **kwargs)


@pytest.mark.parametrize("at", range(4))
def test_a_folder_is_usable_after_a_look_that_was_cancelled(at: int) -> None:
    folder, after = holding_one(), deltas(3, COUNT, 1)[0]
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(look_beside(Stopped(at), folder, *update("float32", BAD, CHUNK_BYTES_MIN)))
    assert look(folder, *update("float32", after, CHUNK_BYTES_MIN)).problem == ""
    folder.add(Weight(1))
    wanted = SUM_OF_ONE + (after / np.float32(1e4)).astype(np.float64)
    assert folder.total().tobytes() == wanted.tobytes()


def test_rounds_opened_in_halves_are_those_of_one_thread_and_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    server = {"clip_norm": 1.0, "clip_quantile": 0.5, "clip_centre": True}
    halves = recorded(server, CHUNKED)
    assert replay(halves, HOME)["equal"]
    monkeypatch.setattr(fold, "HALVES_BYTES_MIN", 10**9)
    whole = recorded(server, CHUNKED)
    assert [each.tobytes() for each in models(halves, CHUNKED)] == [
        each.tobytes() for each in models(whole, CHUNKED)
    ]
