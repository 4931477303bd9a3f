"""The people of these tests: keys made from names, and messages between them."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from msgspec.structs import replace

from schemas.envelope import Envelope, Opened, Order, Sealed, new_clear, open_envelope, parse, seal, sign
from schemas.events import Accept, encode_event
from schemas.ids import DeviceId, federation_id
from schemas.keys import BoxKey, Certificate, KeySet, Kind, SigningKey, sign_struct


def secret(name: str) -> bytes:
    """32 bytes that are nobody's secret."""
    return sha256(f"fedbus test vector: {name}".encode()).digest()


def signing(name: str) -> SigningKey:
    return SigningKey.from_seed(secret(name))


def box(name: str) -> BoxKey:
    return BoxKey.from_secret(secret(name))


ROOT = signing("root")
ONLINE = signing("online")
TOKEN_KEY = signing("token")
DEVICE = signing("device")
OTHER = signing("other device")
COORDINATOR_BOX = box("coordinator box")
ENROLMENT_BOX = box("enrolment box")
DEVICE_BOX = box("device box")
OTHER_BOX = box("other device box")
UPDATE_BOX = box("update box")

FEDERATION = federation_id(ROOT.public)
OTHER_FEDERATION = federation_id(signing("other root").public)
DEVICE_ID = DeviceId("press-07")

KEY_SET = KeySet(
    number=1,
    federation=FEDERATION,
    previous=b"",
    next_root=signing("next root").id,
    signing=ONLINE.public,
    box=COORDINATOR_BOX.public,
    enrolment=ENROLMENT_BOX.public,
)
KEY_SET_BLOB = sign_struct(Kind.KEY_SET, ROOT, KEY_SET)
CERTIFICATE = Certificate(
    federation=FEDERATION,
    device=DEVICE_ID,
    entity="acme",
    signing=DEVICE.public,
    box=DEVICE_BOX.public,
    key_set=1,
)
CERTIFICATE_BLOB = sign_struct(Kind.CERTIFICATE, ONLINE, CERTIFICATE)

ACCEPT = Accept(job="presses", request=7)
ORDER = Order(incarnation=1, seq=42)


def sealed_accept() -> Sealed:
    """A short message of the device to the coordinator, not yet signed."""
    clear = new_clear(FEDERATION, DEVICE.public, COORDINATOR_BOX.public)
    return seal(clear, secret("accept"), COORDINATOR_BOX.public, encode_event(ACCEPT))


def signed_accept() -> Envelope:
    return sign(sealed_accept(), DEVICE, ORDER)


def with_clear(**changes: Any) -> Envelope:
    """The device's message with another clear part, signed by the device itself."""
    sealed = sealed_accept()
    return sign(replace(sealed, clear=replace(sealed.clear, **changes)), DEVICE, ORDER)


def received(data: bytes, sender: bytes, reader: BoxKey = COORDINATOR_BOX) -> Opened:
    """All that a reader does with bytes from outside, in its order."""
    envelope = parse(data)
    envelope.check_signature(sender)
    return open_envelope(envelope, reader, FEDERATION)
