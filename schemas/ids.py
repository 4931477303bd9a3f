"""Names and identifiers: who and what a message is about."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Final, NewType

DeviceId = NewType("DeviceId", str)
JobId = NewType("JobId", str)
FederationId = NewType("FederationId", bytes)

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
FEDERATION_BYTES: Final = 16
KEY_ID_BYTES: Final = 32
DIGEST_BYTES: Final = 32
TRANSFER_BYTES: Final = 16

# The coordinator's own name where a device name would stand (MQTT user, log lines). Not a device id: no
# device may be called that.
COORDINATOR: Final = DeviceId("coordinator")


def checked_name(name: str, what: str) -> str:
    """``name`` if it may be a device, job or entity; ValueError (naming ``what``) otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r}: use 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return name


def device_id(name: str) -> DeviceId:
    """``name`` as a device's; ValueError saying why it cannot be one."""
    if name == COORDINATOR:
        raise ValueError(f"device {name!r}: this name is the coordinator's own; choose another")
    return DeviceId(checked_name(name, "device"))


@lru_cache(maxsize=64)
def federation_id(root_key: bytes) -> FederationId:
    """The federation *is* its first root key: BLAKE2b-128 of the Ed25519 public key."""
    return FederationId(blake2b(root_key, digest_size=FEDERATION_BYTES, person=b"fb1.federation").digest())


def broker_user(federation: FederationId, name: str) -> str:
    """User name, client id and queue of a device (or `COORDINATOR`) at the broker, which may serve several
    federations with devices of the same name."""
    return f"{name}@{federation.hex()[:8]}"


@lru_cache(maxsize=8_192)
def key_id(public_key: bytes) -> bytes:
    """BLAKE2b-256 of a public key."""
    return blake2b(public_key, digest_size=KEY_ID_BYTES).digest()


def transfer_id(body_digest: bytes) -> bytes:
    """Names a transfer by what it carries, so the same ciphertext signed again is the same transfer."""
    return body_digest[:TRANSFER_BYTES]


def model_request_id(job: str) -> bytes:
    """Names a request for a job's newest model in the refusal that answers it."""
    return transfer_id(sha256(job.encode()).digest())
