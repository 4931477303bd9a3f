"""Envelopes: what arrives is what was sent, by whom and to whom it says; all else is refused."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.codec import pack
from schemas.envelope import (
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
from schemas.errors import Forged, KeyRefused, WireError, WrongRecipient
from schemas.events import encode_event
from schemas.ids import key_id
from schemas.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
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
    with_clear,
)


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


def test_another_device_cannot_sign_a_foreign_ciphertext_as_its_own() -> None:
    sealed = sealed_accept()
    stolen = replace(sealed, clear=replace(sealed.clear, sender=OTHER.id))
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
    clear = replace(sealed.clear, recipient=OTHER_BOX.id)
    key = replace(sealed.seal, key=seal_key(secret("accept"), OTHER_BOX.public))
    envelope = sign(Sealed(clear, key, sealed.body), DEVICE, ORDER)
    with pytest.raises(KeyRefused):
        open_envelope(envelope, OTHER_BOX, FEDERATION)


def test_a_message_of_another_federation_is_refused() -> None:
    with pytest.raises(WrongRecipient, match="another federation"):
        open_envelope(with_clear(federation=OTHER_FEDERATION), COORDINATOR_BOX, FEDERATION)


def test_a_message_moved_to_another_federation_does_not_open() -> None:
    with pytest.raises(KeyRefused):
        open_envelope(with_clear(federation=OTHER_FEDERATION), COORDINATOR_BOX, OTHER_FEDERATION)


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


def test_a_chunk_digest_exchanged_on_the_way_is_refused() -> None:
    """The digests stand behind the ciphertext: only the signed digest of the body holds them."""
    clear = new_clear(FEDERATION, DEVICE.public, COORDINATOR_BOX.public, 2 * CHUNK_BYTES_MIN, CHUNK_BYTES_MIN)
    sealed = seal(clear, secret("content"), COORDINATOR_BOX.public, b"", (bytes(32), secret("digest")))
    envelope = sign(sealed, DEVICE, ORDER)
    for body in (envelope.body[:-64] + secret("digest") + bytes(32), envelope.body[:-32] + bytes(32)):
        with pytest.raises(Forged, match="body"):
            parse(replace(envelope, body=body).to_bytes()).check_signature(DEVICE.public)


def test_a_message_with_bytes_behind_it_is_refused() -> None:
    with pytest.raises(Forged):
        received(signed_accept().to_bytes() + b"\0", DEVICE.public)


def resigned(spoil: Callable[[Sealed], Sealed]) -> Envelope:
    """The device's message with one part replaced, and a good signature over the result."""
    sealed = spoil(sealed_accept())
    whole = replace(sealed.seal, body=sha256(sealed.body).digest())
    return sign(replace(sealed, seal=whole), DEVICE, ORDER)


def with_key(sealed: Sealed, key: bytes) -> Sealed:
    return replace(sealed, seal=replace(sealed.seal, key=key))


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
        lambda s: replace(s, seal=replace(s.seal, commitment=bytes(32))),
        KeyRefused,
    ),
    "no commitment": (lambda s: replace(s, seal=replace(s.seal, commitment=b"")), KeyRefused),
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
