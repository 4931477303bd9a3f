"""What reaches the core: messages of devices, commands of operators, timers, outcomes of ordered work."""

from __future__ import annotations

import msgspec

from coordinator.facts import Leaning
from schemas.enrolment import Join
from schemas.envelope import Order
from schemas.events import FromDevice
from schemas.jobs import JobSpec


class Moment(msgspec.Struct, frozen=True, array_like=True):
    """When an input arrived. ``run_s`` counts the seconds that the coordinator was up, across restarts:
    deadlines rest on it. ``wall_s`` is its clock: only tokens expire by it."""

    run_s: float
    wall_s: float


class Input(msgspec.Struct, frozen=True, kw_only=True, tag_field="input"):
    """Base of all inputs."""


class JoinAsked(Input, frozen=True, tag="join-asked"):
    """A device wants to become a member. ``packed`` is what the token's key signed as ``by_token``."""

    join: Join
    packed: bytes
    by_token: bytes
    challenge: bytes


class DeviceSaid(Input, frozen=True, tag="device-said"):
    """A verified, opened message. Recorded as its sealed envelope, not as this."""

    device: str
    order: Order
    event: FromDevice


class UpdateCompleted(Input, frozen=True, tag="update-completed"):
    """All of an update's bytes are durable here, still sealed. ``sender`` and ``key`` are the ids of the
    keys that it was signed with and sealed to."""

    device: str
    sender: bytes
    order: Order
    key: bytes
    digest: bytes


class Invite(Input, frozen=True, tag="invite"):
    """The operator invites a device; the token was made by the shell."""

    token: bytes
    token_key: bytes
    device: str
    entity: str
    expires_wall_s: float


class Revoke(Input, frozen=True, tag="revoke"):
    """The operator ends a device's membership."""

    device: str
    reason: str


class Release(Input, frozen=True, tag="release"):
    """The operator ends a device's quarantine."""

    device: str


class Submit(Input, frozen=True, tag="submit"):
    """The operator wants a job; ``parameters`` as in facts.JobSubmitted."""

    job: str
    spec: JobSpec
    parameters: str


class Cancel(Input, frozen=True, tag="cancel"):
    """The operator ends a job."""

    job: str


class Ticked(Input, frozen=True, tag="ticked"):
    """Time passed."""


class Started(Input, frozen=True, tag="started"):
    """The process began; what was ordered and has no outcome yet is ordered again."""


class Prepared(Input, frozen=True, tag="prepared"):
    """The keys of a round's requests exist, durably: (device, public key) each."""

    job: str
    round: int
    epoch: int
    keys: list[tuple[str, bytes]]


class Checked(Input, frozen=True, tag="checked"):
    """An update was opened and looked at. ``problem`` is empty when nothing speaks against it."""

    job: str
    device: str
    request: int
    problem: str
    norm: float = 0.0
    samples: int = 0
    steps: int = 0
    train_s: float = 0.0
    metrics: dict[str, float] = {}
    evaluation: dict[str, float] = {}
    content: bytes = b""
    distance: float = 0.0


class Committed(Input, frozen=True, tag="committed"):
    """A version's files are durable; the fields are those of facts.VersionCommitted."""

    job: str
    version: int
    round: int
    model: bytes
    layout: bytes
    samples: int
    moments: bytes = b""
    leanings: list[Leaning] = []


class Evaluated(Input, frozen=True, tag="evaluated"):
    """A version was evaluated at the coordinator, or could not be: ``problem`` says why."""

    job: str
    version: int
    metrics: dict[str, float]
    problem: str = ""


class WorkFailed(Input, frozen=True, tag="work-failed"):
    """Ordered work cannot be done at all; the job cannot go on."""

    job: str
    text: str


Recorded = (
    JoinAsked
    | Invite
    | Revoke
    | Release
    | Submit
    | Cancel
    | Ticked
    | Started
    | Prepared
    | Checked
    | Committed
    | Evaluated
    | WorkFailed
)
AnyInput = Recorded | DeviceSaid | UpdateCompleted
