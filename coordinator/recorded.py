"""What is read of a recording to fold its rounds otherwise; each function raises `NothingToReplay`, with the
remedy, where it is not there."""

from __future__ import annotations

from coordinator.fold import Folder
from coordinator.recording import Commit, NothingToReplay, Recording
from coordinator.state import Request
from coordinator.store import Altered
from coordinator.strategies import Moments, ServerOptimiser, begun


def model_of(recording: Recording, job: str, digest: bytes) -> bytes:
    """A version's bytes."""
    try:
        return recording.store.model(job, digest)
    except Altered as error:
        raise NothingToReplay(str(error)) from error
    except OSError as error:
        raise NothingToReplay(f"{error}; restore {recording.directory} from a backup") from error


def moments_before(recording: Recording, commit: Commit, optimiser: ServerOptimiser) -> Moments:
    """What the job's optimiser had kept before a recorded version."""
    moments = begun(optimiser, recording.store.layout(commit.job.id).trained_count)
    try:
        for version in commit.job.versions[-1:]:
            recording.store.read_moments(commit.job.id, version.number, version.moments, moments)
    except Altered as error:
        raise NothingToReplay(str(error)) from error
    except OSError as error:
        raise NothingToReplay(f"{error}; restore {recording.directory} from a backup") from error
    return moments


def base_of(commit: Commit) -> bytes:
    """The model that a version's devices trained from."""
    if commit.job.round is None:
        raise NothingToReplay(f"version {commit.fact.version} of job {commit.job.id} was made by no round")
    return commit.job.round.base


def open_again(recording: Recording, folder: Folder, commit: Commit, request: Request) -> None:
    """Open an update into the folder's buffer."""
    problem = recording.open(folder, commit.job, request)
    if recording.wrong:
        problem = f"log entry {recording.wrong.entry} is wrong ({recording.wrong.what})"
    if problem:
        raise NothingToReplay(
            f"device {request.device}, request {request.number} of job {commit.job.id}: {problem}; "
            f"`fedbus-coordinator replay {recording.directory}` tells what is whole"
        )
