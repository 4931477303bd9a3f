"""Give up the oldest part of the log: whole segments, and the bodies that only they name.

What stays is enough to go on from, and to verify the last `VERSIONS_KEPT` versions: of all jobs together, and
of each job that has not ended. The state that the rest follows on is kept as a snapshot (`BASE`). A
coordinator may serve meanwhile. After a crash at any point the log opens, and the next prune goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.bodies import Bodies
from broker.journal import Journal, Mark
from broker.journal_prune import Prunable
from broker.ports import Files, LockHeld, Ports
from coordinator.apply import apply
from coordinator.entries import Message, Turned, decode_entry
from coordinator.facts import UpdateReceived, VersionCommitted
from coordinator.image import Recovered, encode_image
from coordinator.keystore import load_identity
from coordinator.records import reading
from coordinator.recovery import FOLDER, open_whole
from coordinator.snapshots import BASE, Snapshots
from coordinator.state import ENDED_JOB, State
from coordinator.stored import stored_name
from schemas.codec import unpack
from schemas.envelope import Header
from schemas.ids import key_id

VERSIONS_KEPT: Final = 20
LOCK: Final = "prune.lock"


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, and the first entry that is there now."""

    first: int
    segments: int
    bodies: int
    freed_bytes: int


@dataclass(slots=True)
class _Log:
    """What must be known of the log to cut it."""

    state: State
    known: int
    """The entry up to which nothing is known but the state."""
    commits: list[tuple[int, str, int]] = field(default_factory=list)  # entry, job, version
    received: dict[tuple[str, str, int], int] = field(default_factory=dict)  # job, device, request → entry
    before: dict[tuple[str, int], int] = field(default_factory=dict)
    """Job and version → the last entry before the first of its updates was received."""
    bodies: dict[str, int] = field(default_factory=dict)  # → the entry that named it last


def prune(ports: Ports, directory: Path) -> Pruned:
    """Remove what nothing needs any more.

    Raises `broker.ports.LockHeld` (another prune), `broker.journal.JournalError`, OSError,
    `coordinator.keystore.KeysMissing`.
    """
    federation = load_identity(ports.files, directory).federation
    try:
        with ports.lock.hold(directory / LOCK):
            return _prune(ports.files, directory, federation)
    except LockHeld as error:
        raise LockHeld(f"another prune of {directory} is under way; wait for its end") from error


def _prune(files: Files, directory: Path, federation: bytes) -> Pruned:
    log = _read(files, directory, federation)
    prunable = Prunable(files, directory / FOLDER, federation)
    cut = _cut(log, _kept_snapshots(files, directory, federation))
    if cut > log.known and prunable.begins_later(cut + 1):
        with reading(files, directory, federation):
            pass  # the records keep what is removed here
        files.sync_dir(directory)  # or a power cut would bring back what SQLite rolls its last change back by
        mark, image = _image(files, directory, federation, cut)
        Snapshots(files, directory, federation).put_base(mark, image)
        prunable.begin_at(cut + 1)
    return _remove(files, directory, prunable, log)


def _read(files: Files, directory: Path, federation: bytes) -> _Log:
    journal, base = open_whole(files, directory, federation)
    try:
        log = _Log(base.recovered.state, base.mark.index) if base else _Log(State(), 0)
        for logged in journal.entries():
            entry = decode_entry(logged.data)
            if isinstance(entry, Turned):
                for name in _named(entry):
                    log.bodies[name] = logged.index
                for fact in entry.facts if logged.index > log.known else ():
                    if isinstance(fact, VersionCommitted):
                        log.commits.append((logged.index, fact.job, fact.version))
                        log.before[fact.job, fact.version] = _before(log, fact.job)
                    if isinstance(fact, UpdateReceived):
                        log.received[fact.job, fact.device, fact.request] = logged.index
                    apply(log.state, fact, entry.at.run_s)
    finally:
        journal.close()
    return log


def _before(log: _Log, job: str) -> int:
    """The last entry before all updates of a job's open round, which may have come while an earlier one was
    open, and of the one after it."""
    round_ = log.state.jobs[job].round
    waiting = [*round_.order, *round_.later] if round_ else []
    entries = [log.received.get((job, request.device, request.number), log.known + 1) for request in waiting]
    return min(entries, default=log.known + 1) - 1


def _named(entry: Turned) -> Iterable[str]:
    """The body that an entry names, if it does."""
    if isinstance(entry.input, Message) and not entry.input.body:
        header = unpack(entry.input.header, Header)
        yield stored_name(header.clear.recipient, header.seal.body)


def _kept_snapshots(files: Files, directory: Path, federation: bytes) -> list[Mark]:
    found = Snapshots(files, directory, federation).read()
    return [snapshot.mark for snapshot in found if snapshot.path.name != BASE]


def _cut(log: _Log, kept: list[Mark]) -> int:
    """The last entry that may be given up: nothing that must stay verifiable follows on an earlier one."""
    at = {(job, version): index for index, job, version in log.commits}
    wanted = [(job, version) for _, job, version in log.commits[-VERSIONS_KEPT:]]
    for job in log.state.jobs.values():
        if job.state not in ENDED_JOB:
            wanted += [(job.id, version.number) for version in job.versions[-VERSIONS_KEPT:]]
        if job.round and job.round.order:
            wanted.append((job.id, len(job.versions)))
            log.before[wanted[-1]] = _before(log, job.id)
    # A version is computed from the one before, which is taken from its file; the first is a file itself.
    limits = [
        min(at.get((name, version - 1), log.known), log.before.get((name, version), log.known))
        for name, version in wanted
        if version
    ]
    return min([*limits, *(mark.index for mark in kept)], default=log.known)


def _image(files: Files, directory: Path, federation: bytes, cut: int) -> tuple[Mark, bytes]:
    """The state as of the entry ``cut``."""
    journal, base = open_whole(files, directory, federation)
    try:
        recovered = base.recovered if base else Recovered(State())
        return _up_to(journal, recovered, base.mark.index if base else 0, cut)
    finally:
        journal.close()


def _up_to(journal: Journal, recovered: Recovered, after: int, cut: int) -> tuple[Mark, bytes]:
    for logged in journal.entries(after):
        entry = decode_entry(logged.data)
        recovered.run_s = max(recovered.run_s, entry.at.run_s)
        if isinstance(entry, Turned):
            recovered.turns += 1
            for fact in entry.facts:
                apply(recovered.state, fact, entry.at.run_s)
        if logged.index == cut:
            return Mark(cut, logged.head), encode_image(recovered)
    raise LookupError(f"the journal has no entry {cut}")


def _remove(files: Files, directory: Path, prunable: Prunable, log: _Log) -> Pruned:
    """Bodies first: the segments that are given up say which they are."""
    bodies = Bodies(files, directory / "bodies")
    needed = {name for name, index in log.bodies.items() if index >= prunable.first} | _open(log.state)
    segments, removed, freed = len(prunable.left()), 0, 0
    for data in prunable.entries():
        entry = decode_entry(data)
        for name in _named(entry) if isinstance(entry, Turned) else ():
            if name not in needed and bodies.has(name):
                freed += bodies.size(name)
                bodies.remove(name)
                removed += 1
    bodies.sync()
    return Pruned(prunable.first, segments, removed, freed + prunable.remove())


def _open(state: State) -> set[str]:
    """The bodies of what was received in rounds that have no version yet."""
    rounds = [job.round for job in state.jobs.values() if job.round]
    waiting = [request for round_ in rounds for request in (*round_.order, *round_.later)]
    return {stored_name(key_id(request.key), request.digest) for request in waiting}
