"""Hostile bytes: whatever they are, what reads them raises `WireError` or nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chunks import MAGIC as CHUNK_MAGIC
from schemas.chunks import parse_chunk
from schemas.codec import pack, unpack, unpack_canonical, unpack_plain
from schemas.enrolment import JOIN_MAGIC, WELCOME_MAGIC, Join, open_join, open_welcome, token_from_text
from schemas.envelope import MAGIC, PREFIX, parse
from schemas.errors import Malformed, WireError
from schemas.events import Accept, decode_from_coordinator, decode_from_device
from schemas.keys import Certificate, KeySet, Kind, open_certificate, open_key_set
from schemas.limits import BODY_BYTES_MAX, HEADER_BYTES_MAX, MSGPACK_ITEMS_MAX
from schemas.models import Layout, Manifest, open_layout, open_manifest
from schemas.sealing import open_bytes, open_key, seal_bytes
from tests.schemas.examples import JOB, JOIN, LAYOUT
from tests.schemas.parties import (
    CERTIFICATE,
    DEVICE_BOX,
    DEVICE_ID,
    ENROLMENT_BOX,
    FEDERATION,
    KEY_SET,
    ONLINE,
    ROOT,
    received,
)
from tests.schemas.strategies import msgpack_like

Reader = Callable[[bytes], object]

# Every door through which bytes from outside come in, with the magic that opens it a bit further.
READERS: dict[str, tuple[bytes, Reader]] = {
    "envelope": (MAGIC, parse),
    "message": (MAGIC, lambda data: received(data, ONLINE.public)),
    "chunk": (CHUNK_MAGIC, parse_chunk),
    "join": (JOIN_MAGIC, lambda data: open_join(data, ENROLMENT_BOX)),
    "welcome": (WELCOME_MAGIC, lambda data: open_welcome(data, DEVICE_BOX, JOIN)),
    "token": (b"", lambda data: token_from_text(data.decode("latin-1"))),
    "token bytes": (b"", lambda data: token_from_text(data.decode("utf-8", "surrogateescape"))),
    "from device": (b"\x82", decode_from_device),
    "from coordinator": (b"\x82", decode_from_coordinator),
    "key set": (b"", lambda data: open_key_set(data, ROOT.public, FEDERATION)),
    "certificate": (b"", lambda data: open_certificate(data, KEY_SET, DEVICE_ID)),
    "layout": (b"", lambda data: open_layout(data, ONLINE.public, JOB)),
    "manifest": (b"", lambda data: open_manifest(data, ONLINE.public, FEDERATION, JOB, LAYOUT)),
    "sealed key": (b"", lambda data: open_key(data, ENROLMENT_BOX)),
    "sealed bytes": (b"", lambda data: open_bytes(data, ENROLMENT_BOX)),
    "msgpack": (b"", unpack_plain),
}

# Any bytes may be a sealed chunk (its digest tells), and some are plain msgpack.
TOLERANT = {"chunk", "msgpack"}

# What somebody with the right keys may put inside; they must not be able to stop the reader either.
INSIDE: dict[str, Reader] = {
    "header": lambda data: parse(PREFIX.pack(MAGIC, len(data)) + data + bytes(64 + 272)),
    "event of a device": decode_from_device,
    "event of the coordinator": decode_from_coordinator,
    "join": lambda data: open_join(
        JOIN_MAGIC + seal_bytes(bytes(64) + ONLINE.sign(Kind.JOIN_DEVICE, data) + data, ENROLMENT_BOX.public),
        ENROLMENT_BOX,
    ),
    "welcome": lambda data: open_welcome(
        WELCOME_MAGIC + seal_bytes(ONLINE.sign(Kind.WELCOME, data) + data, DEVICE_BOX.public),
        DEVICE_BOX,
        JOIN,
    ),
    "key set": lambda data: open_key_set(ROOT.sign(Kind.KEY_SET, data) + data, ROOT.public, FEDERATION),
    "certificate": lambda data: open_certificate(
        ONLINE.sign(Kind.CERTIFICATE, data) + data, KEY_SET, DEVICE_ID
    ),
    "layout": lambda data: open_layout(ONLINE.sign(Kind.MANIFEST, data) + data, ONLINE.public, JOB),
    "manifest": lambda data: open_manifest(
        ONLINE.sign(Kind.MANIFEST, data) + data, ONLINE.public, FEDERATION, JOB, LAYOUT
    ),
}

BOMBS: dict[str, bytes] = {
    "arrays in arrays": b"\x91" * 100_000,
    "maps in maps": b"\x81\xa1a" * 30_000,
    "array of 2**32 - 1 items": b"\xdd\xff\xff\xff\xff",
    "map of 2**32 - 1 pairs": b"\xdf\xff\xff\xff\xff",
    "map of 65,537 pairs": b"\xdf\x00\x01\x00\x01" + b"\xa1a\xc0" * 65_537,
    "text of 2**32 - 1 bytes": b"\xdb\xff\xff\xff\xff",
    "bytes of 2**32 - 1 bytes": b"\xc6\xff\xff\xff\xff",
    "wide arrays in arrays": b"\xdc\xff\xff" * 340,
    "text that is no UTF-8": b"\xa2\xff\xfe",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "an empty timestamp": b"\xc7\x00\xff",
    "an extension type": b"\xc7\x00\x05",
    "a byte that msgpack never uses": b"\xc1",
    "a number as key": b"\x81\x01\x01",
    "bytes as key": b"\x81\xc4\x04type\xa6accept",
    "trailing bytes": b"\x80\x00",
    "nothing": b"",
    "NaN": b"\xcb\x7f\xf8" + bytes(6),
    "the greatest number": b"\xcf" + b"\xff" * 8,
    "the least number": b"\xd3\x80" + bytes(7),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fill", [0x00, 0x91, 0xFF])
def test_bytes_of_every_length_raise_nothing_but_a_wire_error(reader: str, fill: int) -> None:
    magic, read = READERS[reader]
    for length in range(600):
        for data in (bytes([fill]) * length, magic + bytes([fill]) * length):
            try:
                read(data)
            except WireError:
                continue
            assert reader in TOLERANT, f"{reader} took {data!r}"


@pytest.mark.parametrize("reader", READERS)
@given(data=st.binary(max_size=2_000))
def test_random_bytes_raise_nothing_but_a_wire_error(reader: str, data: bytes) -> None:
    magic, read = READERS[reader]
    for candidate in (data, magic + data):
        try:
            read(candidate)
        except WireError:
            continue
        assert reader in TOLERANT, f"{reader} took {candidate!r}"


@pytest.mark.parametrize("door", INSIDE)
@given(value=msgpack_like())
def test_any_document_inside_valid_keys_raises_nothing_but_a_wire_error(door: str, value: object) -> None:
    with pytest.raises(WireError):
        INSIDE[door](msgpack.packb(value, use_bin_type=True))


@pytest.mark.parametrize("door", INSIDE)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_msgpack_bomb_is_refused_at_every_door(door: str, bomb: str) -> None:
    data = BOMBS[bomb]
    if door == "header":
        data = data[: 2 * HEADER_BYTES_MAX]
    with pytest.raises(WireError):
        INSIDE[door](data)


def test_a_header_makes_its_reader_allocate_little() -> None:
    """A kilobyte that claims 340 nested arrays of 65,535 items, from nobody in particular."""
    data = BOMBS["wide arrays in arrays"]
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            unpack_plain(data, bytes_max=HEADER_BYTES_MAX)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_more_items_than_the_limit_are_refused() -> None:
    assert unpack_plain(msgpack.packb([0] * MSGPACK_ITEMS_MAX)) == [0] * MSGPACK_ITEMS_MAX
    with pytest.raises(Malformed):
        unpack_plain(msgpack.packb([0] * (MSGPACK_ITEMS_MAX + 1)))


def test_more_bytes_than_the_limit_are_refused_unread() -> None:
    with pytest.raises(Malformed, match=f"at most {BODY_BYTES_MAX}"):
        unpack_plain(bytes(BODY_BYTES_MAX + 1))


@given(value=msgpack_like())
def test_a_plain_value_survives_the_codec(value: object) -> None:
    packed = msgpack.packb(value, use_bin_type=True)
    assert pack(unpack_plain(packed)) == packed


def respelt(value: msgspec.Struct) -> dict[str, bytes]:
    """The same value in other encodings: longer number, other order, a field more, a field twice, no tag."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes,))
    pairs = [msgpack.packb(k) + msgpack.packb(v) for k, v in plain.items()]
    head = bytes([0x80 + len(pairs)])
    longer = {key: b"\xcd" + item.to_bytes(2, "big") for key, item in plain.items() if type(item) is int}
    numbers = [msgpack.packb(k) + longer.get(k, msgpack.packb(v)) for k, v in plain.items()]
    found = {
        "order": head + b"".join(reversed(pairs)),
        "extra": bytes([0x81 + len(pairs)]) + b"".join(pairs) + msgpack.packb("more") + b"\xc0",
        "twice": bytes([0x81 + len(pairs)]) + b"".join(pairs) + pairs[-1],
        "no tag": bytes([0x7F + len(pairs)]) + b"".join(pairs[1:]),
        "trailing": pack(value) + b"\xc0",
    }
    return found | ({"number": head + b"".join(numbers)} if longer else {})


@pytest.mark.parametrize("signed", [KEY_SET, CERTIFICATE, JOIN], ids=["key set", "certificate", "join"])
def test_a_signed_document_in_another_encoding_is_refused(signed: KeySet | Certificate | Join) -> None:
    assert unpack_canonical(pack(signed), type(signed)) == signed
    for how, data in respelt(signed).items():
        with pytest.raises(Malformed):
            unpack_canonical(data, type(signed))
        assert data != pack(signed), how


@pytest.mark.parametrize("kind", [Layout, Manifest, KeySet, Certificate, Join])
def test_a_document_of_another_type_is_refused(kind: type[msgspec.Struct]) -> None:
    with pytest.raises(Malformed):
        unpack(pack(Accept(job=JOB, request=1)), kind)
