"""The core's state, and how facts change it. Ids, counts, digests and deadlines only; never a tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import singledispatch

from coordinator import facts as f
from schemas.envelope import Order
from schemas.events import DeviceStatus
from schemas.ids import key_id
from schemas.jobs import JobSpec
from schemas.limits import OPEN_UPDATES_MAX
from schemas.window import Window


class DeviceState(StrEnum):
    """Where a membership stands."""

    JOINED = "joined"  # keys known, possession of the X25519 key not yet proven
    ACTIVE = "active"
    REVOKED = "revoked"


class JobState(StrEnum):
    """Where a job stands."""

    PREPARING = "preparing"  # version 0 is being made
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class RequestState(StrEnum):
    """Where a training request, and the update that answers it, stands."""

    ISSUED = "issued"
    ACCEPTED = "accepted"
    DECLINED = "declined"
    RECEIVED = "received"  # receipted, not yet judged
    FOLDED = "folded"
    REJECTED = "rejected"
    CLOSED = "closed"  # the round closed without it


OPEN_REQUEST = frozenset({RequestState.ISSUED, RequestState.ACCEPTED})
ENDED_JOB = frozenset({JobState.FINISHED, JobState.CANCELLED, JobState.FAILED})


@dataclass(slots=True)
class TokenRecord:
    """What is known of a token: enough to check a join, not enough to make one."""

    key: bytes
    device: str
    entity: str
    expires_wall_s: float
    join: bytes = b""  # digest of the join that spent it
    void: bool = False  # its device was revoked since


@dataclass(slots=True)
class Device:
    """A member, or one that was."""

    id: str
    entity: str
    signing: bytes
    box: bytes
    challenge: bytes
    state: DeviceState = DeviceState.JOINED
    window: Window = field(default_factory=Window)
    status: DeviceStatus | None = None


@dataclass(slots=True)
class Request:
    """One training request to a device, and the update that answers it."""

    device: str
    number: int
    round: int
    key: bytes
    state: RequestState = RequestState.ISSUED
    digest: bytes = b""
    reason: str = ""
    norm: float = 0.0
    samples: int = 0
    train_s: float = 0.0
    evaluation: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Round:
    """``requests`` are those of this round, in order of issue; ``order`` the receipts, in log order."""

    number: int
    base: bytes
    preparing: list[str]
    deadline_run_s: float = 0.0
    requests: list[Request] = field(default_factory=list)
    order: list[Request] = field(default_factory=list)
    closed: bool = False

    def count(self, *states: RequestState) -> int:
        return sum(request.state in states for request in self.requests)


@dataclass(slots=True)
class Version:
    """A committed version of a job's model."""

    number: int
    round: int
    model: bytes
    layout: bytes
    samples: int


@dataclass(slots=True)
class Job:
    """A job, its versions, its open round, and the newest requests to each device."""

    id: str
    spec: JobSpec
    parameters: str
    submitted_run_s: float
    state: JobState = JobState.PREPARING
    reason: str = ""
    versions: list[Version] = field(default_factory=list)
    round: Round | None = None
    requests: dict[tuple[str, int], Request] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)  # device → newest request number
    unfit: set[str] = field(default_factory=set)  # declined for good, until their status changes
    epoch: int = 0
    epoch_spoilt: bool = False  # somebody who knows the key was revoked

    @property
    def rounds_done(self) -> int:
        return self.versions[-1].round if self.versions else 0


@dataclass(slots=True)
class State:
    """Everything that decisions rest on."""

    tokens: dict[bytes, TokenRecord] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    by_sender: dict[bytes, str] = field(default_factory=dict)  # id of every key that ever joined → device
    by_update_key: dict[bytes, tuple[str, str, int]] = field(default_factory=dict)  # → job, device, number


def apply(state: State, fact: f.AnyFact, run_s: float) -> None:
    """Change ``state`` by one fact. Decides nothing, and never fails for a fact that was recorded."""
    _apply(fact, state, run_s)


@singledispatch
def _apply(fact: f.Fact, state: State, run_s: float) -> None:
    raise TypeError(f"no rule for the fact {type(fact).__name__}")


@_apply.register
def _(fact: f.Invited, state: State, run_s: float) -> None:
    state.tokens[fact.token] = TokenRecord(fact.token_key, fact.device, fact.entity, fact.expires_wall_s)


@_apply.register
def _(fact: f.Joined, state: State, run_s: float) -> None:
    state.tokens[fact.token].join = fact.join
    state.devices[fact.device] = Device(fact.device, fact.entity, fact.signing, fact.box, fact.challenge)
    state.by_sender[key_id(fact.signing)] = fact.device


@_apply.register
def _(fact: f.Activated, state: State, run_s: float) -> None:
    state.devices[fact.device].state = DeviceState.ACTIVE


@_apply.register
def _(fact: f.Heard, state: State, run_s: float) -> None:
    device = state.devices[fact.device]
    device.window = device.window.after(Order(fact.incarnation, fact.seq))


@_apply.register
def _(fact: f.StatusChanged, state: State, run_s: float) -> None:
    state.devices[fact.device].status = fact.status
    for job in state.jobs.values():
        job.unfit.discard(fact.device)


@_apply.register
def _(fact: f.DeviceRevoked, state: State, run_s: float) -> None:
    state.devices[fact.device].state = DeviceState.REVOKED
    for token in state.tokens.values():
        token.void |= token.device == fact.device
    for job in state.jobs.values():
        if fact.device in job.newest:
            job.epoch_spoilt = True
        if job.round:
            theirs = (request for request in job.round.requests if request.device == fact.device)
            _close(theirs, OPEN_REQUEST | {RequestState.DECLINED})  # an update may follow a decline


@_apply.register
def _(fact: f.JobSubmitted, state: State, run_s: float) -> None:
    state.jobs[fact.job] = Job(fact.job, fact.spec, fact.parameters, run_s)


@_apply.register
def _(fact: f.VersionCommitted, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    job.versions.append(Version(fact.version, fact.round, fact.model, fact.layout, fact.samples))
    job.state = JobState.RUNNING
    job.round = None


@_apply.register
def _(fact: f.RoundOpened, state: State, run_s: float) -> None:
    state.jobs[fact.job].round = Round(fact.round, fact.base, list(fact.cohort))


@_apply.register
def _(fact: f.RequestsIssued, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    round_ = _round(job)
    if fact.epoch > job.epoch:
        job.epoch, job.epoch_spoilt = fact.epoch, False
    round_.preparing = []
    round_.deadline_run_s = fact.deadline_run_s
    for issued in fact.requests:
        request = Request(issued.device, issued.number, fact.round, issued.key)
        round_.requests.append(request)
        job.requests[issued.device, issued.number] = request
        job.newest[issued.device] = issued.number
        state.by_update_key[key_id(issued.key)] = (job.id, issued.device, issued.number)
        _forget_old(state, job, issued.device)


@_apply.register
def _(fact: f.RoundExtended, state: State, run_s: float) -> None:
    round_ = _round(state.jobs[fact.job])
    round_.deadline_run_s = fact.deadline_run_s
    round_.preparing = list(fact.devices)


@_apply.register
def _(fact: f.RequestAccepted, state: State, run_s: float) -> None:
    state.jobs[fact.job].requests[fact.device, fact.request].state = RequestState.ACCEPTED


@_apply.register
def _(fact: f.RequestDeclined, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    request = job.requests[fact.device, fact.request]
    request.state, request.reason = RequestState.DECLINED, f"{fact.reason}: {fact.text}"
    if fact.reason in ("policy", "data", "task"):
        job.unfit.add(fact.device)


@_apply.register
def _(fact: f.UpdateReceived, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    request = job.requests[fact.device, fact.request]
    request.digest, request.state = fact.digest, RequestState.RECEIVED
    if job.round and request.round == job.round.number and not job.round.closed:
        job.round.order.append(request)


@_apply.register
def _(fact: f.UpdateJudged, state: State, run_s: float) -> None:
    request = state.jobs[fact.job].requests[fact.device, fact.request]
    request.state = RequestState.FOLDED if fact.folded else RequestState.REJECTED
    request.reason, request.norm, request.samples = fact.reason, fact.norm, fact.samples
    request.train_s, request.evaluation = fact.train_s, fact.evaluation


@_apply.register
def _(fact: f.RoundClosed, state: State, run_s: float) -> None:
    round_ = _round(state.jobs[fact.job])
    round_.closed = True
    _close(round_.requests)


@_apply.register
def _(fact: f.JobEnded, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    job.state, job.reason = JobState(fact.state), fact.reason
    if job.round:
        _close(job.round.requests)
    job.round = None


def _round(job: Job) -> Round:
    if job.round is None:
        raise LookupError(f"job {job.id} has no open round")
    return job.round


def _close(requests: Iterable[Request], states: frozenset[RequestState] = OPEN_REQUEST) -> None:
    for request in requests:
        if request.state in states:
            request.state = RequestState.CLOSED


def _forget_old(state: State, job: Job, device: str) -> None:
    """Keep the newest `OPEN_UPDATES_MAX` requests to a device; what is older counts as closed."""
    if old := job.requests.pop((device, job.newest[device] - OPEN_UPDATES_MAX), None):
        state.by_update_key.pop(key_id(old.key), None)
