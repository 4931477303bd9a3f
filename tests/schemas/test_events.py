"""Events: what is said arrives; what must not be said is refused."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import events as e
from schemas.codec import pack
from schemas.errors import Malformed
from schemas.events import decode_from_coordinator, decode_from_device, encode_event
from schemas.limits import CHUNKS_MAX, INLINE_BYTES_MAX, PULL_CHUNKS_MAX, SECONDS_MAX
from tests.schemas.examples import EITHER, FROM_COORDINATOR, FROM_DEVICE, TRAINING_REQUEST, UPDATE
from tests.schemas.strategies import plain, values

BY_DEVICE: tuple[type[e.Event], ...] = get_args(e.FromDevice)
BY_COORDINATOR: tuple[type[e.Event], ...] = get_args(e.FromCoordinator)
DECODERS = {"device": decode_from_device, "coordinator": decode_from_coordinator}


@pytest.mark.parametrize("kind", BY_DEVICE)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_what_a_device_says_is_what_the_coordinator_reads(kind: type[e.Event], data: st.DataObject) -> None:
    event = data.draw(values(kind))
    assert decode_from_device(encode_event(event)) == event


@pytest.mark.parametrize("kind", BY_COORDINATOR)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_what_the_coordinator_says_is_what_a_device_reads(kind: type[e.Event], data: st.DataObject) -> None:
    event = data.draw(values(kind))
    assert decode_from_coordinator(encode_event(event)) == event


def test_there_is_an_example_of_every_event() -> None:
    assert {type(x) for x in (*FROM_DEVICE, *EITHER)} == set(BY_DEVICE)
    assert {type(x) for x in (*FROM_COORDINATOR, *EITHER)} == set(BY_COORDINATOR)


@pytest.mark.parametrize("event", FROM_DEVICE, ids=lambda event: type(event).__name__)
def test_a_device_refuses_what_only_a_device_says(event: e.Event) -> None:
    with pytest.raises(Malformed):
        decode_from_coordinator(encode_event(event))


@pytest.mark.parametrize("event", FROM_COORDINATOR, ids=lambda event: type(event).__name__)
def test_the_coordinator_refuses_what_only_it_says(event: e.Event) -> None:
    with pytest.raises(Malformed):
        decode_from_device(encode_event(event))


@pytest.mark.parametrize("event", [*FROM_DEVICE, *EITHER, *FROM_COORDINATOR], ids=lambda x: type(x).__name__)
def test_an_event_with_a_field_too_many_too_few_or_misnamed_is_refused(event: e.Event) -> None:
    whole: dict[str, Any] = plain(event)
    decode = decode_from_coordinator if type(event) in BY_COORDINATOR else decode_from_device
    optional = {"inline", "transfer"} if isinstance(event, e.Update | e.Refusal) else set()
    spoilt = [{**whole, "more": 1}, {**whole, "type": "unheard-of"}, {**whole, "type": 1}, [whole], None]
    spoilt += [{k: v for k, v in whole.items() if k != name} for name in set(whole) - optional]
    for document in spoilt:
        with pytest.raises(Malformed):
            decode(pack(document))


BAD_UPDATES: dict[str, tuple[str, Any]] = {
    "no samples": ("samples", 0),
    "negative samples": ("samples", -5),
    "more samples than a float64 counts": ("samples", 2**53),
    "samples that are no integer": ("samples", 1.5),
    "true for samples": ("samples", True),
    "negative steps": ("steps", -1),
    "steps beyond 63 bits": ("steps", 2**63),
    "request beyond 63 bits": ("request", 2**63),
    "short base": ("base", bytes(31)),
    "long base": ("base", bytes(33)),
    "base as text": ("base", "0" * 32),
    "job with a slash": ("job", "a/b"),
    "job with a wildcard": ("job", "+"),
    "job with a dot": ("job", "a.b"),
    "job with a newline": ("job", "presses\n"),
    "empty job": ("job", ""),
    "long job": ("job", "a" * 65),
    "no vectors": ("vectors", []),
    "many vectors": ("vectors", [["v", 1]] * 17),
    "vector of negative length": ("vectors", [["delta", -1]]),
    "NaN seconds": ("train_s", math.nan),
    "infinite seconds": ("train_s", math.inf),
    "negative seconds": ("train_s", -1.0),
    "an age": ("train_s", SECONDS_MAX * 1.01),
    "metrics of text": ("metrics", {"loss": "low"}),
    "many metrics": ("metrics", {str(i): 0.0 for i in range(65)}),
    "a metric of an endless name": ("metrics", {"a" * 501: 0.0}),
    "long inline content": ("inline", bytes(INLINE_BYTES_MAX + 1)),
}


@pytest.mark.parametrize("case", BAD_UPDATES)
def test_an_update_out_of_bounds_is_refused(case: str) -> None:
    name, value = BAD_UPDATES[case]
    with pytest.raises(Malformed):
        decode_from_device(pack({**plain(UPDATE), name: value}))


BAD_REQUESTS: dict[str, tuple[str, Any]] = {
    "no chunk size": ("chunk_bytes", 0),
    "tiny chunks": ("chunk_bytes", 1),
    "huge chunks": ("chunk_bytes", 2**40),
    "NaN deadline": ("deadline_s", math.nan),
    "infinite deadline": ("deadline_s", math.inf),
    "negative deadline": ("deadline_s", -1.0),
    "31-byte job key": ("job_key", bytes(31)),
    "33-byte update key": ("update_key", bytes(33)),
    "nested configuration": ("config", {"a": {"b": 1}}),
    "endless epochs": ("local", {"epochs": 10**9}),
    "NaN learning rate": ("local", {"learning_rate": math.nan}),
    "unknown local setting": ("local", {"optimizer": "adam"}),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_training_request_out_of_bounds_is_refused(case: str) -> None:
    name, value = BAD_REQUESTS[case]
    with pytest.raises(Malformed):
        decode_from_coordinator(pack({**plain(TRAINING_REQUEST), name: value}))


@pytest.mark.parametrize("side", DECODERS)
def test_more_chunks_than_there_may_be_are_refused(side: str) -> None:
    transfer = bytes(16)
    bad = {
        "device": [{"type": "chunk-pull", "transfer": transfer, "chunks": [0] * (PULL_CHUNKS_MAX + 1)}],
        "coordinator": [
            {"type": "grant", "transfer": transfer, "chunks": [CHUNKS_MAX]},
            {"type": "grant", "transfer": transfer, "chunks": [-1]},
            {"type": "grant", "transfer": transfer[1:], "chunks": [0]},
            {"type": "bitmap", "transfer": transfer, "have": bytes(CHUNKS_MAX // 8 + 1)},
        ],
    }
    for document in bad[side]:
        with pytest.raises(Malformed):
            DECODERS[side](pack(document))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metrics_may_say_that_training_diverged(value: float) -> None:
    """NaN and infinities are true losses; whoever compares or adds metrics must look first."""
    update = decode_from_device(pack({**plain(UPDATE), "metrics": {"loss": value}}))
    assert isinstance(update, e.Update)
    assert repr(update.metrics["loss"]) == repr(value)


def test_whole_numbers_may_stand_for_floats() -> None:
    """Other languages' encoders write 600.0 as an integer."""
    request = decode_from_coordinator(pack({**plain(TRAINING_REQUEST), "deadline_s": 600}))
    assert request == TRAINING_REQUEST


def test_a_logged_training_request_does_not_show_the_job_key() -> None:
    assert repr(TRAINING_REQUEST) == "TrainingRequest(job='presses', request=7, round=2)"


def test_a_malformed_event_is_refused_with_the_place_where_it_is_wrong() -> None:
    pull = {"type": "chunk-pull", "transfer": bytes(16), "chunks": [-1]}
    with pytest.raises(Malformed, match=r"^not a known event: Expected `int` >= 0 - at `\$\.chunks\[0\]`$"):
        decode_from_device(pack(pull))
