"""Updates that are read again by blocks: what was sealed comes back, in bounded memory."""

from __future__ import annotations

import tracemalloc
from hashlib import sha256

import numpy as np
import pytest

from coordinator import blockwise
from coordinator.blockwise import Blockwise, Stored
from coordinator.fold import Folder
from coordinator.opening import Unfit
from coordinator.stored import stored_name
from coordinator.strategies import aggregation
from coordinator.strategies.robust import PIECE
from schemas.jobs import ServerSettings
from tests.coordinator.stored_updates import Floats, Sender, bodies_of, deltas, expected, layout_of
from tests.schemas.parties import UPDATE_BOX

ODD = 10_007  # bytes of a chunk: coordinates lie across its ends


def again(updates: list[bytes], count: int) -> Blockwise:
    bodies, digests = bodies_of(*updates)
    return Blockwise(bodies, [Stored(digest, expected(count)) for digest in digests], count)


def whole(updates: Blockwise) -> Floats:
    return np.concatenate([block.copy() for _, block in updates.blocks()], axis=1)


@pytest.mark.parametrize("held", [1, 3 * 4 * 8 * PIECE, 1 << 30])
@pytest.mark.parametrize("count", [1, 5_000, 9 * PIECE, 30_001])
def test_what_was_sealed_comes_back_in_order(held: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "HELD_BYTES_MAX", held)
    changes = deltas(4, count, 3)
    sizes = [4_096, ODD, 65_536] if count > ODD else [0, 0, 0]
    updates = [
        Sender(count, chunk_bytes=size).stored(each) for each, size in zip(changes, sizes, strict=True)
    ]
    found = again(updates, count)
    for _ in range(2):
        assert whole(found).tobytes() == np.stack(changes).tobytes()


def test_an_update_that_was_altered_meanwhile_is_unfit() -> None:
    count = 30_000
    body = bytearray(Sender(count, chunk_bytes=ODD).stored(deltas(4, count, 1)[0]))
    body[-1] ^= 1
    with pytest.raises(Unfit, match="forged"):
        whole(again([bytes(body)], count))
    with pytest.raises(Unfit, match="cut short"):
        whole(again([bytes(body[:-ODD])], count))


def test_memory_is_a_block_of_all_updates_not_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    count, updates = 400_000, 30  # 48 MB in all
    monkeypatch.setattr(blockwise, "HELD_BYTES_MAX", 2 * 1_048_576)
    body = Sender(count, chunk_bytes=65_536).stored(deltas(4, count, 1)[0])
    bodies, _ = bodies_of(body)
    stored = [Stored(sha256(body).digest(), expected(count))] * updates
    rule = aggregation(ServerSettings(aggregation="median"))
    assert rule
    folder = Folder(layout_of(count))
    assert bodies.has(stored_name(UPDATE_BOX.id, stored[0].digest))
    tracemalloc.start()
    try:
        folder.aggregate(rule, Blockwise(bodies, stored, count))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1_048_576 + 12 * 4 * updates * PIECE + 1_048_576
