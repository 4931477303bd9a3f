"""The header of an envelope: one form, one version, everything in bounds; checked before anything else."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from msgspec.structs import replace

from schemas.envelope import MAGIC, PREFIX, Envelope, parse, seal
from schemas.errors import Malformed, UnknownVersion
from schemas.keys import Kind
from schemas.limits import BODY_BYTES_MAX, CHUNK_BYTES_MAX, HEADER_BYTES_MAX
from tests.schemas.parties import (
    COORDINATOR_BOX,
    DEVICE,
    sealed_accept,
    secret,
    signed_accept,
    with_clear,
)

BODY = bytes(16 + 256)  # of the right size; only the header is looked at


@pytest.mark.parametrize("version", [0, 2, 255, 2**63, -1])
def test_a_message_of_another_version_is_refused_by_name(version: int) -> None:
    with pytest.raises(UnknownVersion) as refused:
        parse(with_clear(version=version).to_bytes())
    assert refused.value.version == version


def test_a_later_version_may_have_another_header_and_is_still_known_as_such() -> None:
    header = msgpack.packb([[2, "whatever"], {"new": True}])
    with pytest.raises(UnknownVersion):
        parse(PREFIX.pack(MAGIC, len(header)) + header + bytes(64) + BODY)


def test_an_unknown_cipher_suite_is_refused() -> None:
    with pytest.raises(Malformed, match="suite 2"):
        parse(with_clear(suite=2).to_bytes())


def header_of(envelope: Envelope) -> list[Any]:
    return list(msgpack.unpackb(envelope.header_bytes, raw=False))


def message_with_header(header_bytes: bytes) -> bytes:
    """A message with that header, properly signed, and the device's body."""
    signature = DEVICE.sign(Kind.ENVELOPE, header_bytes)
    return PREFIX.pack(MAGIC, len(header_bytes)) + header_bytes + signature + signed_accept().body


def respelt_headers() -> dict[str, bytes]:
    plain = header_of(signed_accept())
    good = signed_accept().header_bytes
    assert good[:2] == b"\x93\x98"
    assert good[2:4] == b"\x01\x01"
    return {
        "long form of an array": b"\xdc\x00\x03" + good[1:],
        "long form of a number": good[:2] + b"\xcc\x01" + good[3:],
        "signed form of a number": good[:2] + b"\xd0\x01" + good[3:],
        "a version that is a float": msgpack.packb([[1.0, *plain[0][1:]], *plain[1:]]),
        "a version that is true": msgpack.packb([[True, *plain[0][1:]], *plain[1:]]),
        "defaults left out": msgpack.packb([plain[0][:5], *plain[1:]]),
        "a field more": msgpack.packb([[*plain[0], 0], *plain[1:]]),
        "a part more": msgpack.packb([*plain, []]),
        "a part less": msgpack.packb(plain[:2]),
        "trailing bytes": good + b"\xc0",
        "a map": msgpack.packb({"clear": plain[0]}),
        "a federation as text": msgpack.packb([[1, 1, "f" * 16, *plain[0][3:]], *plain[1:]]),
    }


@pytest.mark.parametrize("case", respelt_headers())
def test_a_header_that_is_not_canonical_is_refused(case: str) -> None:
    with pytest.raises(Malformed):
        parse(message_with_header(respelt_headers()[case]))


def changed(part: int, field: int, value: object) -> bytes:
    header = header_of(signed_accept())
    header[part][field] = value
    return message_with_header(msgpack.packb(header))


BAD_HEADERS: dict[str, tuple[int, int, object]] = {
    "short federation": (0, 2, bytes(15)),
    "long sender": (0, 3, bytes(33)),
    "short recipient": (0, 4, bytes(31)),
    "negative content": (0, 5, -1),
    "content without chunks": (0, 5, 100),
    "chunks without content": (0, 7, 1),
    "short body digest": (1, 2, bytes(31)),
    "negative incarnation": (2, 0, -1),
    "incarnation beyond 32 bits": (2, 0, 2**32),
    "negative number": (2, 1, -1),
    "number beyond 63 bits": (2, 1, 2**63),
    "greatest number": (2, 1, 2**64 - 1),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_header_out_of_bounds_is_refused(case: str) -> None:
    with pytest.raises(Malformed):
        parse(changed(*BAD_HEADERS[case]))


@pytest.mark.parametrize(
    "division",
    [
        (8192, 4096, 3),
        (8192, 4096, 1),
        (8192, 4095, 3),
        (8192, CHUNK_BYTES_MAX + 1, 1),
        (2**33 + 1, CHUNK_BYTES_MAX, 2049),
        (2**63, 2**62, 2),
        (32_769 * 4096, 4096, 32_769),
        (0, 4096, 0),
        (8192, 0, 0),
    ],
)
def test_a_division_that_does_not_fit_is_refused(division: tuple[int, int, int]) -> None:
    content_bytes, chunk_bytes, chunks = division
    envelope = with_clear(content_bytes=content_bytes, chunk_bytes=chunk_bytes, chunks=chunks)
    body = BODY + bytes(32 * min(chunks, 40_000))
    with pytest.raises(Malformed):
        parse(replace(envelope, body=body).to_bytes())


def test_a_body_too_short_for_its_chunk_digests_is_refused() -> None:
    envelope = with_clear(content_bytes=40_960, chunk_bytes=4096, chunks=10)
    with pytest.raises(Malformed, match="too short"):
        parse(replace(envelope, body=bytes(16 + 32 * 10 - 1)).to_bytes())


def test_an_oversized_header_or_body_is_refused() -> None:
    with pytest.raises(Malformed):
        parse(message_with_header(bytes(HEADER_BYTES_MAX + 1)))
    with pytest.raises(Malformed, match="oversized"):
        parse(replace(signed_accept(), body=bytes(BODY_BYTES_MAX + 1)).to_bytes())
    with pytest.raises(ValueError, match="body"):
        seal(sealed_accept().clear, secret("accept"), COORDINATOR_BOX.public, bytes(BODY_BYTES_MAX))
