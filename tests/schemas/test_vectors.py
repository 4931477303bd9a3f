"""The golden vectors: what this build computes and reads is what other agents were built against."""

from __future__ import annotations

from hashlib import sha256

import pytest

from schemas.chunks import parse_chunk
from schemas.codec import pack
from schemas.enrolment import open_join, open_welcome, token_from_text
from schemas.envelope import Order, open_envelope, parse
from schemas.events import Event, decode_from_coordinator, decode_from_device
from schemas.models import open_layout, open_manifest
from schemas.sealing import aead_open
from tests.schemas.examples import (
    CONTENT,
    EITHER,
    FROM_COORDINATOR,
    FROM_DEVICE,
    JOB,
    JOIN,
    LAYOUT,
    MANIFEST,
    MODEL,
    TOKEN,
    TOKEN_CA,
    TRANSFER,
    UPDATE,
    WELCOME,
    cut,
)
from tests.schemas.parties import (
    ACCEPT,
    COORDINATOR_BOX,
    DEVICE,
    DEVICE_BOX,
    ENROLMENT_BOX,
    FEDERATION,
    ONLINE,
    UPDATE_BOX,
    received,
)
from tests.schemas.vectors import build, load

VECTORS = load()


def vector(section: str, name: str) -> bytes:
    return bytes.fromhex(VECTORS[section][name])


@pytest.mark.parametrize("section", VECTORS)
def test_this_build_makes_the_vectors_byte_for_byte(section: str) -> None:
    assert build(VECTORS["sealed"])[section] == VECTORS[section]


def test_the_frozen_small_message_is_read() -> None:
    data = vector("envelope", "message")
    opened = received(data, DEVICE.public)
    assert decode_from_device(opened.inner) == ACCEPT
    assert parse(data).order == Order(1, 42)
    assert opened.key == vector("envelope", "encryption_key")
    assert opened.context == vector("envelope", "ctx")


def test_the_frozen_update_and_its_chunks_are_read() -> None:
    envelope = parse(vector("update", "message"))
    envelope.check_signature(DEVICE.public)
    opened = open_envelope(envelope, UPDATE_BOX, FEDERATION)
    assert decode_from_device(opened.inner) == UPDATE
    last, sealed = len(opened.chunk_digests) - 1, vector("update", "last_chunk")
    assert sha256(sealed).digest() == opened.chunk_digests[last]
    assert aead_open(opened.key, last, last + 1, sealed, opened.context) == cut(CONTENT)[last]


def test_the_frozen_join_and_welcome_are_read() -> None:
    join, by_token, packed = open_join(vector("sealed", "join"), ENROLMENT_BOX)
    assert (join, by_token, packed) == (JOIN, vector("enrolment", "join_by_token"), pack(JOIN))
    member = open_welcome(vector("sealed", "welcome"), DEVICE_BOX, JOIN)
    assert (member.key_set_blob, member.challenge) == (WELCOME.key_set, WELCOME.challenge)


def test_the_frozen_token_is_read() -> None:
    assert token_from_text(VECTORS["enrolment"]["token_text"]) == TOKEN
    assert token_from_text(VECTORS["enrolment"]["token_ca_text"]) == TOKEN_CA


def test_the_frozen_model_is_read() -> None:
    assert open_layout(vector("model", "layout_blob"), ONLINE.public, JOB) == LAYOUT
    blob = vector("model", "manifest_blob")
    assert open_manifest(blob, ONLINE.public, FEDERATION, JOB, LAYOUT) == MANIFEST
    count, sealed = len(MANIFEST.chunks), vector("model", "last_chunk")
    key, context = vector("model", "model_key"), vector("model", "transfer")
    assert aead_open(key, count - 1, count, sealed, context) == cut(MODEL)[-1]


@pytest.mark.parametrize("event", [*FROM_DEVICE, *EITHER], ids=lambda event: type(event).__name__)
def test_a_frozen_event_of_a_device_is_read(event: Event) -> None:
    assert decode_from_device(vector("events", tag(event))) == event


@pytest.mark.parametrize("event", [*FROM_COORDINATOR, *EITHER], ids=lambda event: type(event).__name__)
def test_a_frozen_event_of_the_coordinator_is_read(event: Event) -> None:
    assert decode_from_coordinator(vector("events", tag(event))) == event


def tag(event: Event) -> str:
    return str(event.__struct_config__.tag)


def test_the_frozen_chunk_message_is_read() -> None:
    chunk = parse_chunk(vector("small", "chunk_message"))
    assert (chunk.transfer, chunk.index, bytes(chunk.sealed)) == (TRANSFER, 258, b"sixteen bytes + 1")


def test_the_frozen_message_is_addressed_to_the_coordinators_key() -> None:
    assert parse(vector("envelope", "message")).clear.recipient == COORDINATOR_BOX.id
