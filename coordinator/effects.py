"""What the core orders. The shell does it once the facts are durable; doing it twice changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.enrolment import Join
from schemas.events import FromCoordinator


@dataclass(frozen=True, slots=True)
class Tell:
    """Send an event to a device."""

    device: str
    event: FromCoordinator


@dataclass(frozen=True, slots=True)
class AnswerJoin:
    """Send a welcome; ``refused`` says why not, or is empty."""

    join: Join
    challenge: bytes
    entity: str
    refused: str


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Send (again) a training request that was issued."""

    job: str
    device: str
    request: int


@dataclass(frozen=True, slots=True)
class SendReceipt:
    """Tell a device that its update is durable, with the journal's place of it."""

    device: str
    job: str
    request: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SendModel:
    """Offer a version of a job, under a key epoch, to a device that asked; ``state`` is the job's."""

    device: str
    job: str
    version: int
    state: str
    epoch: int


@dataclass(frozen=True, slots=True)
class SendChunks:
    """Send chunks of a model that a device pulled."""

    device: str
    transfer: bytes
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShutOut:
    """Take a revoked device's access to the broker away."""

    device: str


@dataclass(frozen=True, slots=True)
class MakeInitial:
    """Make version 0 of a job's model; answers with Committed or WorkFailed."""

    job: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make the request keys (and the job key of ``epoch``, if new); answers with Prepared."""

    job: str
    round: int
    epoch: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Open and check an update, then fold it by the verdict; answers with Checked unless judged before."""

    job: str
    device: str
    request: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Make the next version of what was folded in a round; answers with Committed."""

    job: str
    round: int


@dataclass(frozen=True, slots=True)
class EvaluateVersion:
    """Evaluate a version at the coordinator, unless a newer one is ordered before its turn comes; answers
    with Evaluated. Nothing waits for it."""

    job: str
    version: int


Effect = (
    Tell
    | AnswerJoin
    | SendRequest
    | SendReceipt
    | SendModel
    | SendChunks
    | ShutOut
    | MakeInitial
    | Prepare
    | Fold
    | Commit
    | EvaluateVersion
)
