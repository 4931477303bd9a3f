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
    round: int
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
    radius: float = 0.0  # of the next round
    strikes: dict[str, int] = field(default_factory=dict)  # device → rejections in a row, for what they held
    quarantine: dict[str, int] = field(
        default_factory=dict
    )  # device → the last round that it is not asked in

    @property
    def rounds_done(self) -> int:
        return self.versions[-1].round if self.versions else 0

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
