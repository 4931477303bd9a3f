"""Fold a recorded federation again, from its log and bodies, and compare every version's digest.

Needs the state directory alone (a copy will do, with its ``keys/``): no broker, no device, no coordinator.
What was decided is taken from the log; what was computed is computed again: every folded update is checked
for its device's signature, opened, compared with its recorded norm and samples, and added in log order to
the version before, which was computed again too. A log that was pruned begins with a snapshot: each job's
version there is taken from its file, and so is the next one, if updates to it were pruned.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from broker.bodies import Bodies
from broker.ports import Ports
from coordinator.apply import apply
from coordinator.entries import Turned, decode_entry
from coordinator.facts import UpdateJudged, UpdateReceived, VersionCommitted
from coordinator.fold import Expected, Folder, look, read_envelope, stored_name
from coordinator.keystore import Identity, KeyStore, load_identity
from coordinator.recovery import open_whole
from coordinator.state import Job, Request, RequestState, State
from coordinator.store import Store
from schemas.envelope import Envelope
from schemas.errors import WireError
from schemas.ids import key_id

Version = dict[str, Any]


class NothingToReplay(Exception):
    """There is no such job, or it has no version. The text says what there is."""


def replay(ports: Ports, directory: Path, *, job: str = "", until: int = 0) -> dict[str, Any]:
    """Compute every version again (of one job, if named; up to version ``until``, if given).

    The result's ``equal`` is True when every digest is the recorded one; ``difference`` names the first
    that is not, or is None; ``pruned`` says how many versions of each job can no longer be computed. Raises
    `broker.journal.JournalError`, `coordinator.keystore.KeysMissing`, `NothingToReplay`.
    """
    identity = load_identity(ports.files, directory)
    journal, base = open_whole(ports.files, directory, identity.federation)
    state = base.recovered.state if base else State()
    refolds: dict[str, Refold] = {}
    for known in state.jobs.values():
        if known.versions and (not job or known.id == job):
            refolds[known.id] = Refold(ports, directory, identity, state, known.id)
            refolds[known.id].follow(known)
    for logged in journal.entries(base.mark.index if base else 0):
        entry = decode_entry(logged.data)
        for fact in entry.facts if isinstance(entry, Turned) else ():
            if isinstance(fact, VersionCommitted) and (not job or fact.job == job):
                if fact.job not in refolds:
                    refolds[fact.job] = Refold(ports, directory, identity, state, fact.job)
                if not until or fact.version <= until:
                    refolds[fact.job].version(fact, logged.index)
            apply(state, fact, entry.at.run_s)
            if isinstance(fact, UpdateReceived) and fact.job in refolds:
                signer = state.devices[fact.device].signing
                refolds[fact.job].signers[fact.device, fact.request] = signer
            if isinstance(fact, UpdateJudged) and fact.job in refolds:
                refolds[fact.job].judged[fact.device, fact.request] = fact
    if not refolds:
        names = ", ".join(sorted(state.jobs)) or "none"
        raise NothingToReplay(f"{directory} records no version of {job or 'any job'}; its jobs: {names}")
    jobs = {name: refold.versions for name, refold in refolds.items()}
    differences = [version for versions in jobs.values() for version in versions if not version["equal"]]
    return {
        "equal": not differences,
        "difference": min(differences, key=lambda version: version["entry"], default=None),
        "jobs": jobs,
        "pruned": {name: refold.pruned for name, refold in refolds.items()},
        "entries": journal.count,
        "head": journal.head.hex(),
    }


class Refold:
    """One job's versions, computed again one after the other."""

    def __init__(self, ports: Ports, directory: Path, identity: Identity, state: State, job: str) -> None:
        self._identity = identity
        self._state = state
        self._job = job
        self._keys = KeyStore(ports.files, directory, ports.entropy)
        self._store = Store(ports.files, directory, identity, self._keys)
        self._bodies = Bodies(ports.files, directory / "bodies")
        self._model: bytes | None = b""
        self._follows = b""  # digest of the version that is taken from its file when it is needed
        self._broken = False  # the round that was open there lost updates
        self.pruned = 0
        self.signers: dict[tuple[str, int], bytes] = {}  # who signed: a device may enrol anew later
        self.judged: dict[tuple[str, int], UpdateJudged] = {}
        self.versions: list[Version] = []

    def follow(self, job: Job) -> None:
        """Begin behind the newest version of ``job``, as a snapshot has it."""
        self._model, self._follows = None, job.versions[-1].model
        self._broken = bool(job.round and job.round.order)
        self.pruned = len(job.versions)

    def version(self, fact: VersionCommitted, entry: int) -> None:
        """Compute the version that ``fact`` records; the state is as it was just before."""
        if self._broken:
            self._follows, self._broken = fact.model, False
            self.pruned += 1
            return
        problems: list[str] = []
        folded = 0
        if fact.round == 0:
            try:
                self._model = self._store.model(self._job, fact.model)
                computed = fact.model
            except (OSError, ValueError) as error:
                problems, computed = [f"the initial model: {error}"], b""
        else:
            folded, problems = self._fold(self._state.jobs[self._job])
            computed = sha256(self._model or b"").digest()
        self.versions.append(
            {
                "version": fact.version,
                "round": fact.round,
                "recorded": fact.model.hex(),
                "computed": computed.hex(),
                "equal": computed == fact.model and not problems,
                "updates": folded,
                "entry": entry,
                "problems": problems,
            }
        )

    def _fold(self, job: Job) -> tuple[int, list[str]]:
        if self._model is None:
            try:
                self._model = self._store.model(self._job, self._follows)
            except (OSError, ValueError) as error:
                return 0, [f"the version before: {error}"]
        folder = Folder(self._store.layout(self._job))
        problems = []
        for request in job.round.order if job.round else ():
            if request.state is RequestState.FOLDED:
                problem = self._add(folder, job, request)
                if problem:
                    problems.append(f"device {request.device}, request {request.number}: {problem}")
        if folder.samples:
            self._model = bytes(folder.finish(self._model))
        return folder.folded, problems

    def _add(self, folder: Folder, job: Job, request: Request) -> str:
        key = self._keys.request_key(job.id, request.round, key_id(request.key))
        if key is None or job.round is None:
            return "the key of its request was destroyed"
        try:
            signer = self.signers[request.device, request.number]
            self._envelope(request).check_signature(signer)
        except (WireError, OSError) as error:
            return str(error)
        expected = Expected(
            self._identity.federation,
            job.id,
            request.number,
            job.round.base,
            self._store.layout(job.id),
            key,
        )
        looked = look(folder, self._bodies, request.digest, expected)
        if looked.problem or looked.update is None:
            return looked.problem
        recorded = self.judged[request.device, request.number]
        if (looked.norm, looked.update.samples) != (recorded.norm, recorded.samples):
            return "its norm or samples are not the recorded ones"
        folder.add(recorded.samples)
        return ""

    def _envelope(self, request: Request) -> Envelope:
        file = self._bodies.open(stored_name(key_id(request.key), request.digest))
        try:
            return read_envelope(file)[0]
        finally:
            file.close()
