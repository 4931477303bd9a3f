"""Enrolment: the token that an operator hands over, the join it allows, the welcome that answers it.

The token holds everything that a device needs to reach the broker as its own user and to know the
federation's root; the coordinator keeps only the token's public key. See docs/protocol.md, "Enrolment".
"""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b, sha256
from typing import Annotated, Final

import msgspec

from schemas.codec import pack, unpack, unpack_canonical
from schemas.errors import Forged, Malformed, TokenRefused
from schemas.fields import Key, Name, Text
from schemas.ids import DeviceId, FederationId, federation_id
from schemas.keys import (
    SIGNATURE_BYTES,
    BoxKey,
    Certificate,
    KeySet,
    Kind,
    SigningKey,
    checked_box_public,
    open_certificate,
    open_key_set,
    sign_struct,
    verify,
)
from schemas.limits import CA_CHARS_MAX, JOIN_BYTES_MAX, TOKEN_CHARS_MAX, WELCOME_BYTES_MAX
from schemas.sealing import open_bytes, seal_bytes

JOIN_MAGIC: Final = b"FBJ1"
WELCOME_MAGIC: Final = b"FBW1"
CHECKSUM_BYTES: Final = 8
TOKEN_ID_BYTES: Final = 16
TOKEN_VERSION: Final = 1
TOKEN_VERSION_CA: Final = 2


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What ``invite`` prints. Secret until used: it carries the seed that a join must be signed with.

    ``ca`` is the PEM text of the authority that signed the broker's certificate; a token that has it is of
    version `TOKEN_VERSION_CA`, one without of version `TOKEN_VERSION`.
    """

    version: int
    root: Key
    enrolment: Key
    id: Annotated[bytes, msgspec.Meta(min_length=TOKEN_ID_BYTES, max_length=TOKEN_ID_BYTES)]
    seed: Key
    device: Name
    urls: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=8)]
    password: Text
    ca: Annotated[str, msgspec.Meta(max_length=CA_CHARS_MAX)] = ""

    def __repr__(self) -> str:
        return f"Token(device={self.device!r}, id={self.id.hex()})"

    @property
    def federation(self) -> FederationId:
        return federation_id(self.root)


def token_to_text(token: Token) -> str:
    """What the operator copies. ValueError if it were too long to be read back."""
    packed = pack_token(token)
    text = base64.urlsafe_b64encode(packed + _checksum(packed)).decode().rstrip("=")
    if len(text) > TOKEN_CHARS_MAX:
        raise ValueError(f"a token of {len(text)} characters; at most {TOKEN_CHARS_MAX}: use shorter URLs")
    return text


def pack_token(token: Token) -> bytes:
    """The token's document: an array that ends with the password if there is no authority."""
    fields = [getattr(token, name) for name in token.__struct_fields__]
    return pack(fields if token.ca else fields[:-1])


def token_from_text(text: str) -> Token:
    """Raises `TokenRefused` saying what is wrong with the text."""
    text = "".join(text.split())
    if len(text) > TOKEN_CHARS_MAX:
        raise TokenRefused(f"token of {len(text)} characters is too long: this is not an enrolment token")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenRefused("the token holds characters that no token has: copy it whole") from error
    packed, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
    if _checksum(packed) != checksum:
        raise TokenRefused("the token's checksum does not fit: a part is missing or altered; copy it whole")
    try:
        token = unpack(packed, Token)
    except Malformed as error:
        raise TokenRefused(f"the token is of another version of fedbus: {error}") from error
    if token.version not in (TOKEN_VERSION, TOKEN_VERSION_CA):
        read = f"{TOKEN_VERSION} and {TOKEN_VERSION_CA}"
        raise TokenRefused(f"the token is of version {token.version}, this build reads {read}")
    if token_to_text(token) != text or (token.version == TOKEN_VERSION_CA) is not bool(token.ca):
        raise TokenRefused("the token is not as it was printed: copy it whole, without adding anything")
    return token


def _checksum(packed: bytes) -> bytes:
    return blake2b(packed, digest_size=CHECKSUM_BYTES, person=b"fb1.token").digest()


class Join(msgspec.Struct, frozen=True, kw_only=True, tag="join"):
    """A device's request to become a member ("T"): signed by the token's key and by its own."""

    federation: bytes
    root: Key
    token: bytes
    device: Name
    signing: Key
    box: Key
    nonce: Key

    def digest(self) -> bytes:
        return sha256(pack(self)).digest()


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """The answer to a join. ``refused`` is empty, or says why not; then there is no certificate."""

    join: bytes
    key_set: bytes
    certificate: bytes
    challenge: bytes
    refused: Text = ""


def seal_join(join: Join, token: Token, device_key: SigningKey) -> bytes:
    """The join as it travels: sealed to the enrolment key, so that the broker learns no keys."""
    packed = pack(join)
    by_token = SigningKey.from_seed(token.seed).sign(Kind.JOIN_TOKEN, packed)
    by_device = device_key.sign(Kind.JOIN_DEVICE, packed)
    return JOIN_MAGIC + seal_bytes(by_token + by_device + packed, token.enrolment)


def open_join(data: bytes, enrolment: BoxKey) -> tuple[Join, bytes, bytes]:
    """(join, token's signature, packed join), the device's own signature checked.

    The token's signature is the caller's to check, who knows the token's public key.
    Raises `Malformed`, `Forged`, `KeyRefused`.
    """
    if not data.startswith(JOIN_MAGIC) or len(data) > JOIN_BYTES_MAX:
        raise Malformed("not a join: wrong magic or size")
    plain = open_bytes(data[len(JOIN_MAGIC) :], enrolment)
    by_token = plain[:SIGNATURE_BYTES]
    by_device = plain[SIGNATURE_BYTES : 2 * SIGNATURE_BYTES]
    packed = plain[2 * SIGNATURE_BYTES :]
    join = unpack_canonical(packed, Join)
    checked_box_public(join.box)
    verify(Kind.JOIN_DEVICE, join.signing, packed, by_device)
    return join, by_token, packed


def seal_welcome(welcome: Welcome, box: bytes, online: SigningKey) -> bytes:
    """The welcome as it travels: signed by the online key, sealed to the join's X25519 key."""
    return WELCOME_MAGIC + seal_bytes(sign_struct(Kind.WELCOME, online, welcome), box)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """What a device knows of its federation after a welcome."""

    key_set: KeySet
    key_set_blob: bytes
    certificate: Certificate
    certificate_blob: bytes
    challenge: bytes


def open_welcome(data: bytes, box: BoxKey, join: Join) -> Member:
    """The membership that answers ``join``, everything checked up to the pinned root.

    Raises `TokenRefused` when the coordinator refused, `Forged` or `Malformed` when it is not its answer.
    """
    if not data.startswith(WELCOME_MAGIC) or len(data) > WELCOME_BYTES_MAX:
        raise Malformed("not a welcome: wrong magic or size")
    plain = open_bytes(data[len(WELCOME_MAGIC) :], box)
    signature, packed = plain[:SIGNATURE_BYTES], plain[SIGNATURE_BYTES:]
    welcome = unpack_canonical(packed, Welcome)
    keys = open_key_set(welcome.key_set, join.root, federation_id(join.root))
    verify(Kind.WELCOME, keys.signing, packed, signature)
    if welcome.join != join.digest():
        raise Forged("this welcome answers another join")
    if welcome.refused:
        raise TokenRefused(welcome.refused)
    certificate = open_certificate(welcome.certificate, keys, DeviceId(join.device))
    if (certificate.signing, certificate.box) != (join.signing, join.box):
        raise Forged("the certificate names other keys than this device's")
    return Member(
        key_set=keys,
        key_set_blob=welcome.key_set,
        certificate=certificate,
        certificate_blob=welcome.certificate,
        challenge=welcome.challenge,
    )
