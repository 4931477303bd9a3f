"""Enrolment: a token is taken whole or not at all; a join and a welcome answer each other and nobody else."""

from __future__ import annotations

import base64
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import pack
from schemas.enrolment import (
    JOIN_MAGIC,
    WELCOME_MAGIC,
    Join,
    Member,
    Token,
    Welcome,
    _checksum,
    open_join,
    open_welcome,
    seal_join,
    seal_welcome,
    token_from_text,
    token_to_text,
)
from schemas.errors import Forged, KeyRefused, Malformed, TokenRefused, WireError
from schemas.ids import federation_id
from schemas.keys import Kind, SigningKey, sign_struct, verify
from schemas.limits import JOIN_BYTES_MAX, TOKEN_CHARS_MAX, WELCOME_BYTES_MAX
from schemas.sealing import seal_bytes
from tests.schemas.examples import CHALLENGE, JOIN, TOKEN, WELCOME
from tests.schemas.parties import (
    CERTIFICATE,
    CERTIFICATE_BLOB,
    DEVICE,
    DEVICE_BOX,
    ENROLMENT_BOX,
    FEDERATION,
    KEY_SET,
    KEY_SET_BLOB,
    ONLINE,
    OTHER,
    OTHER_BOX,
    ROOT,
    TOKEN_KEY,
    signing,
)
from tests.schemas.strategies import values

TEXT = token_to_text(TOKEN)


def token_text(packed: bytes) -> str:
    """A token of these bytes, with the checksum that fits."""
    return base64.urlsafe_b64encode(packed + _checksum(packed)).decode().rstrip("=")


@given(token=values(Token, version=st.just(1), ca=st.just("")))
def test_a_token_is_read_as_it_was_printed(token: Token) -> None:
    assert token_from_text(token_to_text(token)) == token


@given(token=values(Token, version=st.just(2)).filter(lambda token: bool(token.ca)))
def test_a_token_with_an_authority_is_read_as_it_was_printed(token: Token) -> None:
    assert token_from_text(token_to_text(token)) == token


@pytest.mark.parametrize(("version", "ca"), [(1, "PEM"), (2, "")])
def test_a_token_whose_version_does_not_fit_its_fields_is_refused(version: int, ca: str) -> None:
    odd = msgspec.structs.replace(TOKEN, version=version, ca=ca)
    for text in (token_text(pack(odd)), token_to_text(odd)):
        with pytest.raises(TokenRefused):
            token_from_text(text)


@pytest.mark.parametrize("form", ["  {}\n", "{}\r\n", "\t{}"])
def test_a_token_may_be_copied_with_space_around_it_or_line_breaks_inside(form: str) -> None:
    assert token_from_text(form.format(TEXT)) == TOKEN
    assert token_from_text("\n".join(TEXT[at : at + 64] for at in range(0, len(TEXT), 64))) == TOKEN


def test_a_token_cut_anywhere_is_refused() -> None:
    for at in range(len(TEXT)):
        for part in (TEXT[:at], TEXT[len(TEXT) - at :]):
            with pytest.raises(TokenRefused):
                token_from_text(part)


def test_a_token_with_one_character_changed_anywhere_is_refused() -> None:
    for at, char in enumerate(TEXT):
        for other in ("A" if char != "A" else "B", "-", "+", "=", "é", "\0"):
            if other == char:
                continue
            with pytest.raises(TokenRefused):
                token_from_text(TEXT[:at] + other + TEXT[at + 1 :])


@pytest.mark.parametrize("extra", ["=", "==", "A", "AAAA", TEXT, "."])
def test_a_token_with_something_behind_it_is_refused(extra: str) -> None:
    with pytest.raises(TokenRefused):
        token_from_text(TEXT + extra)


def test_a_token_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(TokenRefused, match="version 3"):
        token_from_text(token_text(pack(msgspec.structs.replace(TOKEN, version=3))))
    with pytest.raises(TokenRefused, match="another version"):
        token_from_text(token_text(msgpack.packb([3, "another form"])))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("root", bytes(31)),
        ("enrolment", bytes(33)),
        ("id", bytes(15)),
        ("seed", b""),
        ("device", "../etc"),
        ("device", "press-07\n"),
        ("urls", []),
        ("urls", ["mqtt://a"] * 9),
        ("password", "p" * 501),
        ("ca", "c" * 2049),
    ],
)
def test_a_token_with_a_field_out_of_bounds_is_refused(field: str, value: Any) -> None:
    with pytest.raises(TokenRefused):
        token_from_text(token_text(pack(msgspec.structs.replace(TOKEN, **{field: value}))))


def test_a_token_with_more_than_a_token_holds_is_refused() -> None:
    plain = msgspec.to_builtins(TOKEN, builtin_types=(bytes,))
    with pytest.raises(TokenRefused):
        token_from_text(token_text(msgpack.packb([*plain, "more"])))


def test_an_oversized_token_is_neither_made_nor_read() -> None:
    with pytest.raises(TokenRefused, match="too long"):
        token_from_text("A" * (TOKEN_CHARS_MAX + 1))
    with pytest.raises(ValueError, match="shorter URLs"):
        token_to_text(msgspec.structs.replace(TOKEN, urls=["mqtt://" + "a" * 490] * 8))


def test_a_printed_token_shows_no_secret() -> None:
    assert repr(TOKEN) == f"Token(device='press-07', id={TOKEN.id.hex()})"
    assert TOKEN.federation == FEDERATION


def test_a_join_is_read_by_the_coordinator_with_both_signatures() -> None:
    join, by_token, packed = open_join(seal_join(JOIN, TOKEN, DEVICE), ENROLMENT_BOX)
    assert (join, packed) == (JOIN, pack(JOIN))
    verify(Kind.JOIN_TOKEN, TOKEN_KEY.public, packed, by_token)
    assert join.digest() == JOIN.digest()


def test_a_join_signed_by_another_device_key_is_refused() -> None:
    with pytest.raises(Forged):
        open_join(seal_join(JOIN, TOKEN, OTHER), ENROLMENT_BOX)


def test_a_join_signed_by_another_token_shows_it() -> None:
    forged = msgspec.structs.replace(TOKEN, seed=signing("another token").seed)
    _, by_token, packed = open_join(seal_join(JOIN, forged, DEVICE), ENROLMENT_BOX)
    with pytest.raises(Forged):
        verify(Kind.JOIN_TOKEN, TOKEN_KEY.public, packed, by_token)


def test_a_join_with_its_two_signatures_exchanged_is_refused() -> None:
    packed = pack(JOIN)
    signatures = DEVICE.sign(Kind.JOIN_DEVICE, packed) + TOKEN_KEY.sign(Kind.JOIN_TOKEN, packed)
    with pytest.raises(Forged):
        open_join(JOIN_MAGIC + seal_bytes(signatures + packed, ENROLMENT_BOX.public), ENROLMENT_BOX)


def test_a_join_with_an_x25519_key_of_low_order_is_refused() -> None:
    join = msgspec.structs.replace(JOIN, box=bytes(32))
    with pytest.raises(KeyRefused):
        open_join(seal_join(join, TOKEN, DEVICE), ENROLMENT_BOX)


def test_a_join_sealed_to_another_coordinator_is_refused() -> None:
    with pytest.raises(Forged):
        open_join(seal_join(JOIN, TOKEN, DEVICE), OTHER_BOX)


@pytest.mark.parametrize("field", ["root", "token", "device", "signing", "box", "nonce"])
def test_a_join_changed_in_any_field_is_another_join(field: str) -> None:
    value: Any = "press-08" if field == "device" else bytes(range(32))
    assert msgspec.structs.replace(JOIN, **{field: value}).digest() != JOIN.digest()


def test_an_oversized_join_is_refused() -> None:
    big = JOIN_MAGIC + seal_bytes(bytes(JOIN_BYTES_MAX), ENROLMENT_BOX.public)
    with pytest.raises(Malformed, match="size"):
        open_join(big, ENROLMENT_BOX)


def welcome(online: SigningKey = ONLINE, **changes: Any) -> bytes:
    return seal_welcome(msgspec.structs.replace(WELCOME, **changes), DEVICE_BOX.public, online)


def test_a_welcome_makes_a_member() -> None:
    member = open_welcome(welcome(), DEVICE_BOX, JOIN)
    assert member == Member(
        key_set=KEY_SET,
        key_set_blob=KEY_SET_BLOB,
        certificate=CERTIFICATE,
        certificate_blob=CERTIFICATE_BLOB,
        challenge=CHALLENGE,
    )


def test_a_refused_join_is_told_why() -> None:
    data = welcome(refused="the token expired 3 min ago", certificate=b"", challenge=b"")
    with pytest.raises(TokenRefused, match="expired 3 min ago"):
        open_welcome(data, DEVICE_BOX, JOIN)


def test_a_welcome_that_answers_another_join_is_refused() -> None:
    another = msgspec.structs.replace(JOIN, nonce=bytes(32))
    with pytest.raises(Forged, match="another join"):
        open_welcome(welcome(), DEVICE_BOX, another)
    with pytest.raises(Forged, match="another join"):
        open_welcome(welcome(refused="no", join=another.digest()), DEVICE_BOX, JOIN)


def test_a_welcome_under_a_substituted_root_is_refused() -> None:
    """All of it is consistent, but not what the token pinned."""
    root = signing("substituted root")
    keys = msgspec.structs.replace(KEY_SET, federation=federation_id(root.public))
    for key_set in (keys, KEY_SET):
        with pytest.raises(Forged):
            open_welcome(welcome(key_set=sign_struct(Kind.KEY_SET, root, key_set)), DEVICE_BOX, JOIN)


def test_a_welcome_not_signed_by_the_online_key_is_refused() -> None:
    for online in (OTHER, ROOT, DEVICE):
        with pytest.raises(Forged):
            open_welcome(welcome(online), DEVICE_BOX, JOIN)


def test_a_welcome_for_another_reader_is_refused() -> None:
    with pytest.raises(Forged):
        open_welcome(welcome(), OTHER_BOX, JOIN)


@pytest.mark.parametrize(
    "changes",
    [
        {"signing": OTHER.public},
        {"box": OTHER_BOX.public},
        {"device": "press-08"},
        {"federation": bytes(16)},
    ],
)
def test_a_welcome_with_somebody_elses_certificate_is_refused(changes: dict[str, Any]) -> None:
    certificate = sign_struct(Kind.CERTIFICATE, ONLINE, msgspec.structs.replace(CERTIFICATE, **changes))
    with pytest.raises(Forged):
        open_welcome(welcome(certificate=certificate), DEVICE_BOX, JOIN)


@pytest.mark.parametrize("part", ["key_set", "certificate"])
def test_a_welcome_without_a_part_is_refused(part: str) -> None:
    with pytest.raises(WireError):
        open_welcome(welcome(ONLINE, **{part: b""}), DEVICE_BOX, JOIN)


def test_an_oversized_welcome_is_refused() -> None:
    big = WELCOME_MAGIC + seal_bytes(bytes(WELCOME_BYTES_MAX), DEVICE_BOX.public)
    with pytest.raises(Malformed, match="size"):
        open_welcome(big, DEVICE_BOX, JOIN)


def test_the_longest_join_and_welcome_are_taken() -> None:
    longest = "d" * 64
    join = msgspec.structs.replace(JOIN, device=longest)
    token = msgspec.structs.replace(TOKEN, device=longest)
    assert open_join(seal_join(join, token, DEVICE), ENROLMENT_BOX)[0] == join
    certificate = msgspec.structs.replace(CERTIFICATE, device=longest, entity="e" * 64)
    data = welcome(join=join.digest(), certificate=sign_struct(Kind.CERTIFICATE, ONLINE, certificate))
    assert open_welcome(data, DEVICE_BOX, join).certificate == certificate
    refused = welcome(join=join.digest(), refused="é" * 500, certificate=b"", challenge=b"")
    with pytest.raises(TokenRefused):
        open_welcome(refused, DEVICE_BOX, join)


@given(value=values(Join) | values(Welcome))
def test_a_join_or_welcome_with_random_fields_raises_nothing_but_a_wire_error(value: Join | Welcome) -> None:
    if isinstance(value, Join):
        with pytest.raises(WireError):
            open_join(JOIN_MAGIC + seal_bytes(bytes(128) + pack(value), ENROLMENT_BOX.public), ENROLMENT_BOX)
    else:
        signed = sign_struct(Kind.WELCOME, ONLINE, value)
        with pytest.raises(WireError):
            open_welcome(WELCOME_MAGIC + seal_bytes(signed, DEVICE_BOX.public), DEVICE_BOX, JOIN)
