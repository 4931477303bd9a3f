"""Envelopes: what arrives is what was sent, by whom and to whom it says; all else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import pack
from schemas.envelope import (
    MAGIC,
    PREFIX,
    Clear,
    Envelope,
    Order,
    Sealed,
    chunk_count,
    chunk_digests,
    new_clear,
    open_envelope,
    parse,
    seal,
    sign,
)
from schemas.errors import Forged, KeyRefused, Malformed, UnknownVersion, WireError, WrongRecipient
from schemas.events import encode_event
from schemas.ids import key_id
from schemas.keys import Kind
from schemas.limits import BODY_BYTES_MAX, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, HEADER_BYTES_MAX
from schemas.sealing import seal_key
from tests.schemas.parties import (
    ACCEPT,
    COORDINATOR_BOX,
    DEVICE,
    FEDERATION,
    ORDER,
    OTHER,
    OTHER_BOX,
    OTHER_FEDERATION,
    received,
    sealed_accept,
    secret,
    signed_accept,
)

BODY = bytes(16 + 256)  # of the right size; only the header is looked at


@given(
    inner=st.binary(max_size=3_000),
    order=st.builds(Order, st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)),
    division=st.none() | st.tuples(st.integers(1, 10**6), st.integers(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)),
)
def test_what_was_sealed_and_signed_is_read(
    inner: bytes, order: Order, division: tuple[int, int] | None
) -> None:
    content_bytes, chunk_bytes = division or (0, 0)
    clear = new_clear(FEDERATION, DEVICE.public, COORDINATOR_BOX.public, content_bytes, chunk_bytes)
    digests = tuple(sha256(bytes([i % 256])).digest() for i in range(clear.chunks))
    sealed = seal(clear, secret("content"), COORDINATOR_BOX.public, inner, digests)
    data = sign(sealed, DEVICE, order).to_bytes()
    envelope = parse(data)
    opened = received(data, DEVICE.public)
    assert (opened.inner, opened.chunk_digests, envelope.order) == (inner, digests, order)
    assert chunk_digests(envelope) == digests
    assert envelope.to_bytes() == data
    assert sum(clear.chunk_size(i) for i in range(clear.chunks)) == content_bytes


def test_the_length_of_a_short_message_does_not_show() -> None:
    clear = new_clear(FEDERATION, DEVICE.public, COORDINATOR_BOX.public)
    sizes = {len(seal(clear, secret("k"), COORDINATOR_BOX.public, bytes(n)).body) for n in (0, 1, 100, 252)}
    assert sizes == {256 + 16}


def test_the_same_ciphertext_under_a_new_number_is_the_same_message() -> None:
    sealed = sealed_accept()
    first, again = sign(sealed, DEVICE, Order(0, 5)), sign(sealed, DEVICE, Order(0, 9_000))
    assert (first.digest, first.transfer, first.body) == (again.digest, again.transfer, again.body)
    assert first.header_bytes != again.header_bytes
    assert received(again.to_bytes(), DEVICE.public).inner == encode_event(ACCEPT)


def with_clear(**changes: Any) -> Envelope:
    """The device's message with another clear part, signed by the device itself."""
    sealed = sealed_accept()
    return sign(replace(sealed, clear=msgspec.structs.replace(sealed.clear, **changes)), DEVICE, ORDER)


def test_another_device_cannot_sign_a_foreign_ciphertext_as_its_own() -> None:
    sealed = sealed_accept()
    stolen = replace(sealed, clear=msgspec.structs.replace(sealed.clear, sender=OTHER.id))
    envelope = parse(sign(stolen, OTHER, ORDER).to_bytes())
    envelope.check_signature(OTHER.public)  # its signature is good, but the sender is bound into the key
    with pytest.raises(KeyRefused):
        open_envelope(envelope, COORDINATOR_BOX, FEDERATION)


def test_another_device_cannot_sign_in_the_senders_name() -> None:
    envelope = parse(sign(sealed_accept(), OTHER, ORDER).to_bytes())
    with pytest.raises(Forged):
        envelope.check_signature(DEVICE.public)
    with pytest.raises(Forged, match="another sender"):
        envelope.check_signature(OTHER.public)


def test_a_message_to_another_reader_is_refused() -> None:
    with pytest.raises(WrongRecipient):
        received(signed_accept().to_bytes(), DEVICE.public, OTHER_BOX)


def test_a_message_redirected_to_another_reader_does_not_open() -> None:
    """Somebody who can open a message seals its content key again, to a third party."""
    sealed = sealed_accept()
    clear = msgspec.structs.replace(sealed.clear, recipient=OTHER_BOX.id)
    key = msgspec.structs.replace(sealed.seal, key=seal_key(secret("accept"), OTHER_BOX.public))
    envelope = sign(Sealed(clear, key, sealed.body), DEVICE, ORDER)
    with pytest.raises(KeyRefused):
        open_envelope(envelope, OTHER_BOX, FEDERATION)


def test_a_message_of_another_federation_is_refused() -> None:
    with pytest.raises(WrongRecipient, match="another federation"):
        open_envelope(with_clear(federation=OTHER_FEDERATION), COORDINATOR_BOX, FEDERATION)


def test_a_message_moved_to_another_federation_does_not_open() -> None:
    with pytest.raises(KeyRefused):
        open_envelope(with_clear(federation=OTHER_FEDERATION), COORDINATOR_BOX, OTHER_FEDERATION)


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


def test_a_message_cut_anywhere_is_refused() -> None:
    data = signed_accept().to_bytes()
    for length in range(len(data)):
        with pytest.raises(WireError):
            received(data[:length], DEVICE.public)


def test_a_message_with_one_bit_changed_anywhere_is_refused() -> None:
    data = signed_accept().to_bytes()
    for at in range(len(data)):
        with pytest.raises(WireError):
            received(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :], DEVICE.public)


def test_a_message_with_bytes_behind_it_is_refused() -> None:
    with pytest.raises(Forged):
        received(signed_accept().to_bytes() + b"\0", DEVICE.public)


def test_an_oversized_header_or_body_is_refused() -> None:
    with pytest.raises(Malformed):
        parse(message_with_header(bytes(HEADER_BYTES_MAX + 1)))
    with pytest.raises(Malformed, match="oversized"):
        parse(replace(signed_accept(), body=bytes(BODY_BYTES_MAX + 1)).to_bytes())
    with pytest.raises(ValueError, match="body"):
        seal(sealed_accept().clear, secret("accept"), COORDINATOR_BOX.public, bytes(BODY_BYTES_MAX))


def resigned(spoil: Callable[[Sealed], Sealed]) -> Envelope:
    """The device's message with one part replaced, and a good signature over the result."""
    sealed = spoil(sealed_accept())
    whole = msgspec.structs.replace(sealed.seal, body=sha256(sealed.body).digest())
    return sign(replace(sealed, seal=whole), DEVICE, ORDER)


def with_key(sealed: Sealed, key: bytes) -> Sealed:
    return replace(sealed, seal=msgspec.structs.replace(sealed.seal, key=key))


SPOILT: dict[str, tuple[Callable[[Sealed], Sealed], type[WireError]]] = {
    "another content key": (
        lambda s: with_key(s, seal_key(secret("K"), COORDINATOR_BOX.public)),
        KeyRefused,
    ),
    "no sealed key": (lambda s: with_key(s, b""), Forged),
    "short sealed key": (lambda s: with_key(s, s.seal.key[:-1]), Forged),
    "long sealed key": (lambda s: with_key(s, s.seal.key + b"\0"), Forged),
    "sealed key from a point of low order": (lambda s: with_key(s, bytes(32) + s.seal.key[32:]), Forged),
    "another commitment": (
        lambda s: replace(s, seal=msgspec.structs.replace(s.seal, commitment=bytes(32))),
        KeyRefused,
    ),
    "no commitment": (lambda s: replace(s, seal=msgspec.structs.replace(s.seal, commitment=b"")), KeyRefused),
    "another body": (lambda s: replace(s, body=bytes(len(s.body))), Forged),
    "only a tag": (lambda s: replace(s, body=s.body[:16]), Forged),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_signed_message_that_does_not_hold_together_does_not_open(case: str) -> None:
    spoil, error = SPOILT[case]
    envelope = parse(resigned(spoil).to_bytes())
    envelope.check_signature(DEVICE.public)
    with pytest.raises(error):
        open_envelope(envelope, COORDINATOR_BOX, FEDERATION)


def test_what_is_read_is_named_by_the_senders_key_id() -> None:
    clear: Clear = signed_accept().clear
    assert (clear.sender, clear.recipient) == (key_id(DEVICE.public), key_id(COORDINATOR_BOX.public))
    assert pack(clear) in signed_accept().header_bytes
    assert chunk_count(0, 4096) == clear.chunks == 0
