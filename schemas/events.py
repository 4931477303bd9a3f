"""What the two sides say to each other, in the order of one federation's life.

Each event is the inner document of one envelope: a msgpack map whose ``type`` names it. ``request`` numbers
the training requests to one device within one job; the update that answers it has the same number, so
(job, device, request) is the update's id. ``base`` is the SHA-256 of the model that was trained on.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from schemas.codec import OneOf, pack, unpack_one
from schemas.encodings import Encoding
from schemas.fields import (
    ChunkBytes,
    Digest,
    Indices,
    Key,
    Metrics,
    Name,
    Number,
    PullIndices,
    Seconds,
    Text,
    Transfer,
)
from schemas.jobs import LocalSettings, TaskConfig
from schemas.limits import CHUNKS_MAX, INLINE_BYTES_MAX


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all events; never sent itself."""


# Enrolment. Token, Join and Welcome come before there are keys to seal with: see enrolment.py.


class ChallengeAnswer(Event, frozen=True, tag="challenge-answer"):
    """Device: here is the challenge that the welcome held. Proves that it owns the X25519 key."""

    challenge: Key


class Enrolled(Event, frozen=True, tag="enrolled"):
    """Coordinator: the device is active."""


# Presence.


class DeviceStatus(Event, frozen=True, tag="device-status"):
    """Device, after each connection: what it is and what its owner allows. ``encodings`` names those that it
    can send beside float32 (`schemas.encodings.ENCODINGS`)."""

    agent: Text
    cores: Number
    memory_bytes: Number
    power: Literal["mains", "battery"]
    tasks: Annotated[list[Text], msgspec.Meta(max_length=256)]
    samples: Annotated[dict[Text, Number], msgspec.Meta(max_length=256)]
    encodings: Annotated[list[Text], msgspec.Meta(max_length=64)] | msgspec.UnsetType = msgspec.UNSET


class RequestRef(msgspec.Struct, frozen=True, array_like=True):
    """Names one training request to the device that speaks or is spoken to."""

    job: Name
    request: Number


class StateRequest(Event, frozen=True, tag="state-request"):
    """Device, after each connection: this is what I hold; tell me what stands open."""

    requests: Annotated[list[RequestRef], msgspec.Meta(max_length=1024)]
    key_set: Number


class StateReply(Event, frozen=True, tag="state-reply"):
    """Coordinator: ``requests`` stand open and are sent again if you did not name them. Those of yours in
    ``closed`` will not be folded: stop training them; an update that is made already is still taken.
    """

    requests: Annotated[list[RequestRef], msgspec.Meta(max_length=1024)]
    closed: Annotated[list[RequestRef], msgspec.Meta(max_length=1024)]


# One round.


class TrainingRequest(Event, frozen=True, tag="training-request"):
    """Coordinator: please train. ``manifest`` and ``layout`` are signed (models.py); ``deadline_s`` counts
    from sending and is for planning only; the update is sealed to ``update_key``, made for this request. It
    is wanted in ``encoding``, which the device can do, and welcome in float32.
    """

    job: Name
    request: Number
    round: Number
    base: Digest
    task: Text
    dataset: Text
    config: TaskConfig
    local: LocalSettings
    manifest: bytes
    layout: bytes
    job_key: Key
    update_key: Key
    chunk_bytes: ChunkBytes
    deadline_s: Seconds
    encoding: Encoding | msgspec.UnsetType = msgspec.UNSET

    def __repr__(self) -> str:
        return f"TrainingRequest(job={self.job!r}, request={self.request}, round={self.round})"


class Accept(Event, frozen=True, tag="accept"):
    """Device: I will train; the request is durable here."""

    job: Name
    request: Number


class Decline(Event, frozen=True, tag="decline"):
    """Device: I will not, or no longer. ``reason`` is one of `DECLINE_REASONS`."""

    job: Name
    request: Number
    reason: Text
    text: Text


DECLINE_REASONS = ("policy", "data", "task", "memory", "time", "worker", "busy", "base")


class ChunkPull(Event, frozen=True, tag="chunk-pull"):
    """Device: of this model I wait for these chunks; those that I named before and do not name now are here,
    and none left means that it is whole."""

    transfer: Transfer
    chunks: PullIndices


class Vector(msgspec.Struct, frozen=True, array_like=True):
    """One named flat vector of an update: float32, little-endian, unless the update is encoded."""

    name: Text
    length: Number


class Update(Event, frozen=True, tag="update"):
    """Device: the result. The vectors' bytes, in order, are ``inline`` or the content of the chunks.

    ``content`` is their SHA-256; ``train_s`` the time inside the task's ``train``; ``evaluation`` what the
    *received* model scored on the device's held-out part. ``encoding`` is that of the bytes.
    """

    job: Name
    request: Number
    base: Digest
    vectors: Annotated[list[Vector], msgspec.Meta(min_length=1, max_length=16)]
    samples: Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
    steps: Number
    train_s: Seconds
    metrics: Metrics
    evaluation: Metrics
    content: Digest
    inline: Annotated[bytes, msgspec.Meta(max_length=INLINE_BYTES_MAX)] = b""
    encoding: Encoding | msgspec.UnsetType = msgspec.UNSET


class OfferRead(Event, frozen=True, tag="offer-read"):
    """Coordinator: I read your offer number ``seq``, and so all that you sent before it. The bitmap and the
    grants behind this follow from that.
    """

    transfer: Transfer
    seq: Number


class Grant(Event, frozen=True, tag="grant"):
    """Coordinator: you may send these chunks now."""

    transfer: Transfer
    chunks: Indices


class Bitmap(Event, frozen=True, tag="bitmap"):
    """Coordinator: what I hold of your transfer; bit i of byte i//8, lowest first."""

    transfer: Transfer
    have: Annotated[bytes, msgspec.Meta(max_length=CHUNKS_MAX // 8)]


class Receipt(Event, frozen=True, tag="receipt"):
    """Coordinator: the update named by ``digest`` is durable here; you may forget it.

    ``digest`` is SHA-256 of the sealed body that came first under this id; ``index`` and ``head`` are the
    journal's when it became durable.
    """

    job: Name
    request: Number
    digest: Digest
    index: Number
    head: Digest


class Verdict(Event, frozen=True, tag="verdict"):
    """Coordinator: what became of a receipted update."""

    job: Name
    request: Number
    folded: bool
    reason: Text
    round: Number


class JobFinished(Event, frozen=True, tag="job-finished"):
    """Coordinator: no more requests of this job will come."""

    job: Name
    state: Text
    version: Number


class ModelRequest(Event, frozen=True, tag="model-request"):
    """Device: tell me the newest version of this job, in which I took part."""

    job: Name


class ModelOffer(Event, frozen=True, tag="model-offer"):
    """Coordinator: the newest version, to be pulled or not. ``state`` is `schemas.jobs.JOB_RUNNING`, or how
    the job ended: then this version is its last. ``manifest`` and ``layout`` are signed (models.py)."""

    job: Name
    version: Number
    state: Name
    manifest: bytes
    layout: bytes
    task: Text
    config: TaskConfig
    job_key: Key

    def __repr__(self) -> str:
        return f"ModelOffer(job={self.job!r}, version={self.version}, state={self.state!r})"


# Refusals and farewells.


class Stale(Event, frozen=True, tag="stale"):
    """Coordinator: below your replay window; sign it again above ``high``."""

    high: Number
    transfer: Transfer


class Refusal(Event, frozen=True, tag="refusal"):
    """Either side: a message of yours was not taken. ``code`` as in errors.py, or ``closed``: forget the
    update named by ``transfer``, its request was closed too long ago to be known; or, for a model that you
    pull, ask for your state; or, for a `ModelRequest` (`schemas.ids.model_request_id`), ask no more.
    """

    code: Text
    text: Text
    transfer: Annotated[bytes, msgspec.Meta(max_length=16)] = b""


class Revoked(Event, frozen=True, tag="revoked"):
    """Coordinator: you are no longer a member; forget the federation's models."""

    reason: Text


Answer = Accept | Decline | Update
FromDevice = ChallengeAnswer | DeviceStatus | StateRequest | Answer | ChunkPull | ModelRequest | Refusal
OfRound = TrainingRequest | OfferRead | Grant | Bitmap | Receipt | Verdict | JobFinished
FromCoordinator = Enrolled | StateReply | OfRound | ModelOffer | Stale | Refusal | Revoked
_FROM_DEVICE: Final[OneOf[FromDevice]] = OneOf(FromDevice)
_FROM_COORDINATOR: Final[OneOf[FromCoordinator]] = OneOf(FromCoordinator)


def encode_event(event: Event) -> bytes:
    """The inner document of an event, with the shortest head: msgspec makes room for unset fields."""
    data = pack(event)
    short = data[0] == 0xDE and data[1:3] <= b"\x00\x0f"
    return bytes([0x80 | data[2]]) + data[3:] if short else data


def decode_from_device(inner: bytes) -> FromDevice:
    """What a device said. Raises `Malformed`."""
    return unpack_one(inner, _FROM_DEVICE)


def decode_from_coordinator(inner: bytes) -> FromCoordinator:
    """What the coordinator said. Raises `Malformed`."""
    return unpack_one(inner, _FROM_COORDINATOR)
