"""What does not answer its request, or was damaged, is not folded, and the verdict names the fault."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.fold import BLOCK, Folder
from coordinator.looking import look
from coordinator.opening import Unfit
from schemas import events as e
from schemas.limits import CHUNK_BYTES_MIN
from schemas.models import DELTA
from tests.coordinator.stored_updates import Sender, bodies_of, deltas, expected, layout_of, read
from tests.schemas.parties import OTHER_BOX, OTHER_FEDERATION

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


def test_an_update_of_another_size_is_unfit_for_a_chunked_layout() -> None:
    sender = replace(Sender(1_100, chunk_bytes=CHUNK_BYTES_MIN), count=1_000)
    with pytest.raises(Unfit, match=r"^length: 4400 bytes where 4000 belong"):
        read(Folder(layout_of(1_000)), sender.stored(deltas(1, 1_100, 1)[0]), 1_000)
