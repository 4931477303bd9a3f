"""What the coordinator decided: the facts of the log. State changes by facts alone (state.py).

A fact is recorded together with the input that caused it and the core's behaviour version, so recovery
applies what was decided then, and a later core never decides an old message again.
"""

from __future__ import annotations

import msgspec

from schemas.events import DeviceStatus
from schemas.jobs import JobSpec


class Fact(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact"):
    """Base of all facts."""


class Invited(Fact, frozen=True, tag="invited"):
    """A token was made; only its public key is known here."""

    token: bytes
    token_key: bytes
    device: str
    entity: str
    expires_wall_s: float


class Joined(Fact, frozen=True, tag="joined"):
    """A token was spent: these are the device's keys from now on."""

    token: bytes
    join: bytes
    device: str
    entity: str
    signing: bytes
    box: bytes
    challenge: bytes


class Activated(Fact, frozen=True, tag="activated"):
    """The device has proven that it owns its X25519 key."""

    device: str


class Heard(Fact, frozen=True, tag="heard"):
    """An authentic message of a device was taken: its number is used up."""

    device: str
    incarnation: int
    seq: int


class StatusChanged(Fact, frozen=True, tag="status-changed"):
    """What a device can do, as it said last."""

    device: str
    status: DeviceStatus


class DeviceRevoked(Fact, frozen=True, tag="device-revoked"):
    """Nothing that comes from this device after this is folded."""

    device: str
    reason: str


class JobSubmitted(Fact, frozen=True, tag="job-submitted"):
    """``parameters`` names the safetensors file of the initial model; empty: the task makes them."""

    job: str
    spec: JobSpec
    parameters: str


class Leaning(msgspec.Struct, frozen=True, array_like=True):
    """The cosine of a folded update to the Δ that a rule over all of them made, and whether it is in it."""

    device: str
    request: int
    cosine: float
    counted: bool


class VersionCommitted(Fact, frozen=True, tag="version-committed"):
    """``model`` is SHA-256 of the version's bytes; ``round`` is 0 for the initial parameters. ``moments`` is
    SHA-256 of what the server optimiser keeps for the next round, empty when it keeps nothing. ``leanings``,
    in the order of folding, are there where the job's aggregation is no mean."""

    job: str
    version: int
    round: int
    model: bytes
    layout: bytes
    samples: int
    moments: bytes = b""
    leanings: list[Leaning] = []


class RoundOpened(Fact, frozen=True, tag="round-opened"):
    """A round began on the version ``base``; its requests are being prepared."""

    job: str
    round: int
    base: bytes
    cohort: list[str]


class IssuedRequest(msgspec.Struct, frozen=True, array_like=True):
    """``key`` is the public X25519 key that the update is sealed to."""

    device: str
    number: int
    key: bytes


class RequestsIssued(Fact, frozen=True, tag="requests-issued"):
    """Requests exist, with the keys that updates are sealed to; the round's clock runs."""

    job: str
    round: int
    epoch: int
    requests: list[IssuedRequest]
    deadline_run_s: float


class RoundExtended(Fact, frozen=True, tag="round-extended"):
    """The deadline passed with too few reports: more time, and further devices."""

    job: str
    round: int
    deadline_run_s: float
    devices: list[str]


class RequestAccepted(Fact, frozen=True, tag="request-accepted"):
    """The device will train."""

    job: str
    device: str
    request: int


class RequestDeclined(Fact, frozen=True, tag="request-declined"):
    """The device will not train, or no longer; ``reason`` is of schemas.events.DECLINE_REASONS."""

    job: str
    device: str
    request: int
    reason: str
    text: str


class UpdateReceived(Fact, frozen=True, tag="update-received"):
    """The update is durable here. The order of these facts is the order of folding."""

    job: str
    device: str
    request: int
    digest: bytes


class UpdateJudged(Fact, frozen=True, tag="update-judged"):
    """``reason`` is empty when folded. ``norm`` is the L2 norm of the update, ``distance`` that of its
    difference to the last round's Δ, where the job measures it; ``content`` its SHA-256 as the device said
    it."""

    job: str
    device: str
    request: int
    folded: bool
    reason: str
    norm: float = 0.0
    samples: int = 0
    steps: int = 0
    train_s: float = 0.0
    metrics: dict[str, float] = {}
    evaluation: dict[str, float] = {}
    content: bytes = b""
    distance: float = 0.0


class DeviceQuarantined(Fact, frozen=True, tag="device-quarantined"):
    """Too many updates of the device in a row were rejected for what they held, the last for ``reason``: the
    job doesn't ask it again before the round after ``until``."""

    job: str
    device: str
    until: int
    reason: str


class DeviceReleased(Fact, frozen=True, tag="device-released"):
    """Every job may ask the device again, whatever was rejected of it before."""

    device: str


class RoundClosed(Fact, frozen=True, tag="round-closed"):
    """No update is folded into this round any more; its version is made now. ``radius`` clips the next
    round's changes, 0 where the job has another rule."""

    job: str
    round: int
    reason: str
    radius: float = 0.0


class VersionEvaluated(Fact, frozen=True, tag="version-evaluated"):
    """What a version scores: ``source`` is of schemas.jobs, and says who measured.

    Of devices, ``metrics`` are means of what at least half of the ``devices`` told whose updates came, and
    ``norm`` is the median of these updates'. A ``problem`` says why nothing was measured.
    """

    job: str
    version: int
    source: str
    metrics: dict[str, float]
    devices: int = 0
    norm: float = 0.0
    problem: str = ""


class AlarmRaised(Fact, frozen=True, tag="alarm-raised"):
    """Training seems to go wrong: ``kind`` is of evaluation.ALARMS; ``value`` came where ``bound`` is
    much."""

    job: str
    version: int
    source: str
    kind: str
    value: float
    bound: float


class JobEnded(Fact, frozen=True, tag="job-ended"):
    """``state`` is a final one of state.JobState."""

    job: str
    state: str
    reason: str


AnyFact = (
    Invited
    | Joined
    | Activated
    | Heard
    | StatusChanged
    | DeviceRevoked
    | JobSubmitted
    | VersionCommitted
    | RoundOpened
    | RequestsIssued
    | RoundExtended
    | RequestAccepted
    | RequestDeclined
    | UpdateReceived
    | UpdateJudged
    | DeviceQuarantined
    | DeviceReleased
    | RoundClosed
    | VersionEvaluated
    | AlarmRaised
    | JobEnded
)
