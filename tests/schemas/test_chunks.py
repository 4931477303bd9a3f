"""Chunks: none can be moved, cut, exchanged or taken from another division of the content."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chunks import HEAD, MAGIC, bitmap, from_bitmap, pack_chunk, parse_chunk
from schemas.errors import Forged, KeyRefused, Malformed
from schemas.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CHUNKS_MAX
from schemas.sealing import aead_open, aead_seal, chunk_open_into
from tests.schemas.examples import CONTENT, TRANSFER, cut
from tests.schemas.parties import secret

KEY, CONTEXT = secret("chunk key"), secret("chunk context")
PARTS = cut(CONTENT)
COUNT = len(PARTS)
SEALED = [aead_seal(KEY, i, COUNT, part, CONTEXT) for i, part in enumerate(PARTS)]


def opened_into(key: bytes, index: int, count: int, sealed: bytes, context: bytes) -> bytes:
    out = bytearray(max(len(sealed) - 16, 0))
    chunk_open_into(key, index, count, memoryview(sealed), context, memoryview(out))
    return bytes(out)


WAYS = {"to bytes": aead_open, "into a buffer": opened_into}


@pytest.mark.parametrize("way", WAYS)
def test_chunks_open_in_any_order(way: str) -> None:
    assert COUNT == 3
    for index in (2, 0, 1):
        assert WAYS[way](KEY, index, COUNT, SEALED[index], CONTEXT) == PARTS[index]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("index", "count", "sealed", "key", "context"),
    [
        pytest.param(0, COUNT, SEALED[1], KEY, CONTEXT, id="swapped"),
        pytest.param(0, COUNT + 1, SEALED[0], KEY, CONTEXT, id="of another number of chunks"),
        pytest.param(0, COUNT, SEALED[0][:-1], KEY, CONTEXT, id="truncated"),
        pytest.param(0, COUNT, SEALED[0] + b"\0", KEY, CONTEXT, id="extended"),
        pytest.param(0, COUNT, SEALED[0][:16], KEY, CONTEXT, id="only a tag"),
        pytest.param(0, COUNT, SEALED[0], secret("another"), CONTEXT, id="another key"),
        pytest.param(0, COUNT, SEALED[0], KEY, secret("another"), id="another message"),
        pytest.param(0, COUNT, SEALED[0], KEY, b"", id="no message"),
        pytest.param(2**32 - 1, COUNT, SEALED[0], KEY, CONTEXT, id="as inner document"),
    ],
)
def test_a_chunk_out_of_its_place_does_not_open(
    way: str, index: int, count: int, sealed: bytes, key: bytes, context: bytes
) -> None:
    with pytest.raises(Forged):
        WAYS[way](key, index, count, sealed, context)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_chunk_without_a_whole_tag_is_refused(way: str, length: int) -> None:
    with pytest.raises(Forged):
        WAYS[way](KEY, 0, COUNT, bytes(length), CONTEXT)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_chunk_key_of_another_length_is_refused(way: str, length: int) -> None:
    with pytest.raises(KeyRefused):
        WAYS[way](bytes(length), 0, COUNT, SEALED[0], CONTEXT)
    with pytest.raises(KeyRefused):
        aead_seal(bytes(length), 0, COUNT, PARTS[0], CONTEXT)


def test_a_content_cut_into_other_chunks_does_not_open() -> None:
    """The same sealed bytes, divided at other places and numbered anew."""
    whole = b"".join(SEALED)
    size = 2 * (CHUNK_BYTES_MIN + 16)
    again = [whole[at : at + size] for at in range(0, len(whole), size)]
    for index, piece in enumerate(again):
        for count in (COUNT, len(again)):
            with pytest.raises(Forged):
                aead_open(KEY, index, count, piece, CONTEXT)


def test_a_chunk_for_a_buffer_of_another_size_is_refused() -> None:
    for size in (len(PARTS[0]) - 1, len(PARTS[0]) + 1):
        with pytest.raises(Forged):
            chunk_open_into(KEY, 0, COUNT, memoryview(SEALED[0]), CONTEXT, memoryview(bytearray(size)))


@given(index=st.integers(0, CHUNKS_MAX - 1), sealed=st.binary(min_size=17, max_size=200))
def test_a_chunk_message_survives(index: int, sealed: bytes) -> None:
    chunk = parse_chunk(pack_chunk(TRANSFER, index, sealed))
    assert (chunk.transfer, chunk.index, bytes(chunk.sealed)) == (TRANSFER, index, sealed)
    assert parse_chunk(pack_chunk(TRANSFER, index, memoryview(sealed))) == chunk


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(pack_chunk(TRANSFER, 0, bytes(16)), id="empty"),
        pytest.param(pack_chunk(TRANSFER, CHUNKS_MAX, bytes(17)), id="index too great"),
        pytest.param(pack_chunk(TRANSFER, 2**32 - 1, bytes(17)), id="index of the inner document"),
        pytest.param(pack_chunk(TRANSFER, 0, bytes(CHUNK_BYTES_MAX + 17)), id="oversized"),
        pytest.param(b"FBE1" + bytes(60), id="an envelope"),
        pytest.param(MAGIC, id="magic only"),
        pytest.param(MAGIC + bytes(HEAD.size - 4), id="head only"),
    ],
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_chunk(data)


def test_the_greatest_chunk_is_taken() -> None:
    assert (
        len(parse_chunk(pack_chunk(TRANSFER, 0, bytes(CHUNK_BYTES_MAX + 16))).sealed) == CHUNK_BYTES_MAX + 16
    )


def test_the_head_of_a_chunk_is_big_endian() -> None:
    assert HEAD.size == 24
    assert struct.pack(">I", 258) in pack_chunk(TRANSFER, 258, bytes(17))


@given(have=st.sets(st.integers(0, CHUNKS_MAX - 1), max_size=60))
def test_a_bitmap_says_which_chunks_are_there(have: set[int]) -> None:
    assert from_bitmap(bitmap(have), CHUNKS_MAX) == have
    assert len(bitmap(have)) <= CHUNKS_MAX // 8


@given(have=st.binary(max_size=40), count=st.integers(0, 400))
def test_a_bitmap_from_outside_names_only_chunks_that_exist(have: bytes, count: int) -> None:
    assert from_bitmap(have, count) <= set(range(count))
