"""A model version as a safetensors file, as PyTorch's ``load_state_dict`` takes it."""

from __future__ import annotations

from pathlib import Path

from broker.ports import Ports, write_export
from coordinator.keystore import KeyStore, load_identity
from coordinator.state import Job, State, Version
from coordinator.store import Store
from schemas.safetensors import metadata, to_safetensors


class NoSuchVersion(Exception):
    """The job or its version does not exist. The text says what there is."""


def find_version(state: State, job: str, number: int | None) -> tuple[Job, Version]:
    """A job and one of its versions, the newest for None. Raises `NoSuchVersion`."""
    known = state.jobs.get(job)
    if known is None:
        names = ", ".join(state.jobs) or "none"
        raise NoSuchVersion(f"there is no job {job}; the jobs: {names}")
    if not known.versions:
        raise NoSuchVersion(f"job {job} has no version yet ({known.state}: {known.reason or 'wait for it'})")
    found = [version for version in known.versions if number in (None, version.number)]
    if not found:
        raise NoSuchVersion(
            f"job {job} has no version {number}; it has 0 to {known.versions[-1].number}, "
            f"see `fedbus-coordinator models list {job}`"
        )
    return known, found[-1]


def best_version(state: State, job: str) -> int | None:
    """Which version of a job scored best. Raises `NoSuchVersion` if that is not known."""
    known, newest = find_version(state, job, None)
    if known.spec.evaluation is None:
        raise NoSuchVersion(
            f"job {job} does not say what is best: it has no [evaluation]; choose with --version, of 0 to "
            f"{newest.number}"
        )
    if known.progress.best < 0:
        why = known.progress.problem or f"no {known.spec.evaluation.metric} was measured yet"
        raise NoSuchVersion(f"job {job} has no best version ({why}); choose with --version")
    return known.progress.best


def export(ports: Ports, directory: Path, job: Job, version: Version, out: Path) -> int:
    """Write the version to ``out``, whole or not at all; returns the file's size in bytes.

    Raises OSError, and `coordinator.store.Altered` when the version's file was.
    """
    identity = load_identity(ports.files, directory)
    store = Store(ports.files, directory, identity, KeyStore(ports.files, directory, ports.entropy))
    told = metadata(
        identity.federation, job.id, version.number, version.model, job.spec.task, job.spec.config
    )
    data = to_safetensors(store.layout(job.id), store.model(job.id, version.model), told)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder; make it first")
    write_export(ports.files, out, data)
    return len(data)
