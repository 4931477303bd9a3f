"""The core's state: ids, counts, digests and deadlines; never a tensor. Only apply.py changes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from schemas.events import DeviceStatus
from schemas.jobs import JobSpec
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
    void: bool = False  # its device was revoked since, or invited again


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
    folded: int = 0  # updates, over all jobs


@dataclass(slots=True)
class Request:
    """One training request to a device, and the update that answers it."""

    device: str
    number: int
    round: int  # that it was issued in: the version before that one is what the device trains
    key: bytes
    state: RequestState = RequestState.ISSUED
    digest: bytes = b""
    reason: str = ""
    norm: float = 0.0
    samples: int = 0
    steps: int = 0
    distance: float = 0.0
    train_s: float = 0.0
    evaluation: dict[str, float] = field(default_factory=dict)
    into: int = 0  # the later round that its update counts in (asynchronous jobs); 0: its own

    @property
    def counts_in(self) -> int:
        """The round whose version holds the update, if it is folded."""
        return self.into or self.round

    @property
    def staleness(self) -> int:
        """Versions made between the one that was trained and the one that the update counts in."""
        return self.counts_in - self.round


@dataclass(slots=True)
class Round:
    """``requests`` are those whose updates may count in this round, in order of issue; ``order`` the
    receipts, in log order; ``later`` those that wait for the next round (asynchronous jobs), in log order."""

    number: int
    base: bytes
    preparing: list[str]
    deadline_run_s: float = 0.0
    requests: list[Request] = field(default_factory=list)
    order: list[Request] = field(default_factory=list)
    closed: bool = False
    later: list[Request] = field(default_factory=list)
    radius: float = 0.0  # that clips; 0: the job's clip_norm

    def count(self, *states: RequestState) -> int:
        return len([request for request in self.requests if request.state in states])


@dataclass(slots=True)
class Version:
    """A committed version of a job's model."""

    number: int
    round: int
    model: bytes
    layout: bytes
    samples: int
    moments: bytes = b""


@dataclass(slots=True)
class Trend:
    """Of a number that should not grow from version to version: it rose ``rises`` times in a row; ``above``:
    it is far above its least."""

    last: float
    least: float
    rises: int = 0
    above: bool = False


@dataclass(slots=True)
class Alarm:
    """As in facts.AlarmRaised."""

    version: int
    source: str
    kind: str
    value: float
    bound: float


@dataclass(slots=True)
class Progress:
    """How good a job's versions are, where the job asks (``[evaluation]``); nothing where it does not.

    ``mark`` is the score that must be bettered by ``min_delta``, and was not in ``stale`` versions. Of what
    was measured, ``known`` has "source/metric", and ``missing`` those that the newest version lacks.
    """

    best: int = -1
    best_score: float = 0.0
    mark: float = 0.0
    stale: int = 0
    tried: int = -1  # the newest version that was evaluated at the coordinator, or could not be
    problem: str = ""  # why it could not be
    known: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    trends: dict[str, Trend] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)


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
    carried: list[Request] = field(default_factory=list)
    """From a round that became a version to the one that is opened in the same turn (asynchronous jobs)."""
    radius: float = 0.0  # of the next round
    progress: Progress = field(default_factory=Progress)
    strikes: dict[str, int] = field(default_factory=dict)  # device → rejections in a row, for what they held
    quarantine: dict[str, int] = field(
        default_factory=dict
    )  # device → the last round that it is not asked in

    @property
    def rounds_done(self) -> int:
        return self.versions[-1].round if self.versions else 0

    def base(self, request: Request) -> Version:
        """The version that a request is to be trained on: round n begins with version n - 1."""
        return self.versions[request.round - 1]

    def wanted_versions(self) -> list[int]:
        """The versions that devices may pull: the newest, and those that they train, from the oldest on."""
        training = [one for one in self.round.requests if one.state in OPEN_REQUEST] if self.round else []
        return sorted({self.base(request).number for request in training} | {len(self.versions) - 1})

    def takes(self, request: Request) -> int:
        """The round in which an update to ``request`` counts if it is received now; 0: it comes too late."""
        round_ = self.round
        if round_ is None:
            return 0
        if self.spec.asynchronous is None:
            return request.round if request.round == round_.number and not round_.closed else 0
        number = round_.number + round_.closed
        late = number > self.spec.rounds or number - request.round > self.spec.asynchronous.staleness_max
        return 0 if late else number

    def quarantined(self, device: str) -> bool:
        """Whether the next round, or the open one, does not ask the device."""
        return self.quarantine.get(device, 0) > self.rounds_done


@dataclass(slots=True)
class State:
    """Everything that decisions rest on."""

    tokens: dict[bytes, TokenRecord] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    by_sender: dict[bytes, str] = field(default_factory=dict)  # id of every key that ever joined → device
    by_update_key: dict[bytes, tuple[str, str, int]] = field(default_factory=dict)  # → job, device, number
