"""Who this device is: its keys, its federation, and the membership it was given. One file, mode 0600."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from broker.bus import Credentials, Tls
from broker.ports import Files, write_atomic
from schemas.codec import pack, unpack
from schemas.enrolment import Join, Member, Token, token_from_text
from schemas.errors import Forged, Malformed
from schemas.fields import Key, Name, Text
from schemas.ids import DeviceId, FederationId, broker_user, federation_id
from schemas.keys import BoxKey, KeySet, SigningKey, open_certificate, open_key_set
from schemas.topics import down, up

FILE: Final = "identity"
SEQUENCE_FILE: Final = "sequence"
LOCK_FILE: Final = "lock"


class IdentityError(Exception):
    """The state directory holds no identity that can be used. The message names the remedy."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """All that must survive. ``token`` is kept until a welcome came, so that the same join can be repeated.
    ``ca`` is the PEM text of the authority that signed the broker's certificate; empty for the system's.

    Without ``key_set`` the device is no member yet; until ``active`` it still owes the ``challenge``.
    """

    device: Name
    root: Key
    urls: list[Text]
    password: Text
    ca: str = ""
    signing_seed: Key
    box_secret: Key
    nonce: Key
    token: str = ""
    key_set: bytes = b""
    certificate: bytes = b""
    challenge: bytes = b""
    active: bool = False

    def __repr__(self) -> str:
        return f"Identity(device={self.device!r}, federation={self.federation.hex()})"

    @property
    def federation(self) -> FederationId:
        return federation_id(self.root)

    @property
    def signing(self) -> SigningKey:
        return SigningKey.from_seed(self.signing_seed)

    @property
    def box(self) -> BoxKey:
        return BoxKey.from_secret(self.box_secret)

    @property
    def up_topic(self) -> str:
        return up(self.federation, DeviceId(self.device))

    @property
    def down_topic(self) -> str:
        return down(self.federation, DeviceId(self.device))

    def credentials(self) -> Credentials:
        """The device's own user at the broker, before settings are looked at (`edge_agent.presence`)."""
        user = broker_user(self.federation, self.device)
        return Credentials(user, user, self.password, tls=Tls(ca=self.ca))

    def join(self, token: Token) -> Join:
        """T: the same identity and token always make the same join."""
        return Join(
            federation=self.federation,
            root=self.root,
            token=token.id,
            device=self.device,
            signing=self.signing.public,
            box=self.box.public,
            nonce=self.nonce,
        )

    def keys(self) -> KeySet:
        """The coordinator's keys, checked again up to the pinned root. Raises `Forged`."""
        return open_key_set(self.key_set, self.root, self.federation)

    def entity(self) -> str:
        """Whom the certificate says this device belongs to."""
        return open_certificate(self.certificate, self.keys(), DeviceId(self.device)).entity

    def pending_token(self) -> Token | None:
        """The token of a join that was not answered yet."""
        return token_from_text(self.token) if self.token else None


def adopt(identity: Identity, member: Member) -> Identity:
    """``identity`` with the membership in a checked welcome. Raises `Forged` for an older key set."""
    if identity.key_set and member.key_set.number < identity.keys().number:
        raise Forged(
            f"key set {member.key_set.number} is older than {identity.keys().number}, which is known already"
        )
    return msgspec.structs.replace(
        identity,
        token="",
        key_set=member.key_set_blob,
        certificate=member.certificate_blob,
        challenge=member.challenge,
        active=False,
    )


def save(files: Files, directory: Path, identity: Identity) -> None:
    """Durably, whole or not at all."""
    write_atomic(files, directory / FILE, pack(identity))


def load_any(files: Files, directory: Path) -> Identity | None:
    """The identity in ``directory``, member or not; None if there is none. Raises `IdentityError`."""
    path = directory / FILE
    try:
        return unpack(files.read(path), Identity)
    except FileNotFoundError:
        return None
    except Malformed as error:
        raise IdentityError(
            f"{path}: damaged ({error}); restore it from a backup or enrol again in a new directory"
        ) from error
    except OSError as error:
        raise IdentityError(
            f"{path}: can't be read: {error.strerror}; run as the user who enrolled this device"
        ) from error


def load(files: Files, directory: Path) -> Identity:
    """The identity of an enrolled device. Raises `IdentityError` if there is none."""
    identity = load_any(files, directory)
    if identity is None or not identity.key_set:
        cause = "the enrolment was not finished" if identity else "no device is enrolled here"
        raise IdentityError(
            f"{directory}: {cause}; ask the operator for a token and run "
            f"`fedbus-agent enroll --token-file FILE --dir {directory}`"
        )
    try:
        identity.keys()
    except Forged as error:
        raise IdentityError(f"{directory}: the coordinator's keys don't hold: {error}") from error
    return identity
