"""Fold a recorded federation again, from its log and bodies, and compare every version's digest.

Needs the state directory alone (a copy will do, with its ``keys/``): no broker, no device, no coordinator.
What was decided is taken from the log; what was computed is computed again: every folded update is checked
for its device's signature, opened, compared with its recorded norm and samples, and added in log order to
the version before, which was computed again too. A log that was pruned begins with a snapshot: each job's
version there is taken from its file, and so are the next ones, as long as updates to them were pruned.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from broker.ports import Ports
from coordinator.blockwise import leanings
from coordinator.fold import Folder
from coordinator.opening import Unfit
from coordinator.recording import Commit, NothingToReplay, Recording
from coordinator.state import Job
from coordinator.state import Version as Known
from coordinator.strategies import Moments, aggregation, begun, digest_of, server_optimiser

Version = dict[str, Any]


def replay(ports: Ports, directory: Path, *, job: str = "", until: int = 0) -> dict[str, Any]:
    """Compute every version again (of one job, if named; up to version ``until``, if given).

    The result's ``equal`` is True when every digest is the recorded one, and no entry of the log is
    contradicted by others; ``difference`` names the first digest that is not, ``wrong`` the first such entry,
    or None; ``pruned`` says how many versions of each job can no longer be computed. Raises
    `broker.journal.JournalError`, `coordinator.keystore.KeysMissing`, `NothingToReplay`.
    """
    recording = Recording(ports, directory)
    refolds: dict[str, Refold] = {}
    for known in recording.state.jobs.values():
        if known.versions and (not job or known.id == job):
            refolds[known.id] = Refold(recording, known.id)
            refolds[known.id].follow(known)
    for commit in recording.commits(job):
        if commit.fact.job not in refolds:
            refolds[commit.fact.job] = Refold(recording, commit.fact.job)
        if not until or commit.fact.version <= until:
            refolds[commit.fact.job].version(commit)
    wrong = recording.wrong
    if not refolds and not wrong:
        names = ", ".join(sorted(recording.state.jobs)) or "none"
        raise NothingToReplay(f"{directory} records no version of {job or 'any job'}; its jobs: {names}")
    jobs = {name: refold.versions for name, refold in refolds.items()}
    differences = [version for versions in jobs.values() for version in versions if not version["equal"]]
    return {
        "equal": not differences and wrong is None,
        "difference": min(differences, key=lambda version: version["entry"], default=None),
        "wrong": {"entry": wrong.entry, "what": wrong.what} if wrong else None,
        "jobs": jobs,
        "pruned": {name: refold.pruned for name, refold in refolds.items()},
        "entries": recording.journal.count,
        "head": recording.journal.head.hex(),
    }


def first_difference(directory: Path, result: dict[str, Any]) -> str:
    """What `replay` found to differ first, for a person; nothing if all is equal."""
    wrong, version = result["wrong"], result["difference"]
    found = []
    if version is not None:
        cause = "; ".join(version["problems"]) or "the bits differ"
        found.append(
            (version["entry"], f"version {version['version']} (log entry {version['entry']})", cause)
        )
    if wrong is not None:
        found.append((wrong["entry"], f"log entry {wrong['entry']}", wrong["what"]))
    told = [f"{which} is not what was recorded: {cause}" for _, which, cause in sorted(found)]
    return f"{directory}: {'; '.join(told)}" if told else ""


class Refold:
    """One job's versions, computed again one after the other."""

    def __init__(self, recording: Recording, job: str) -> None:
        self._recording = recording
        self._job = job
        self._folder: Folder | None = None
        self._model: bytes | memoryview | None = b""
        self._moments: Moments | None = None
        self._follows: Known | None = None  # the version that is taken from its files when it is needed
        self.pruned = 0
        self.versions: list[Version] = []

    def follow(self, job: Job) -> None:
        """Begin behind the newest version of ``job``, as a snapshot has it."""
        self._model, self._follows = None, job.versions[-1]
        self.pruned = len(job.versions)

    def version(self, commit: Commit) -> None:
        """Compute a recorded version again."""
        fact = commit.fact
        if not commit.complete:
            made = Known(fact.version, fact.round, fact.model, fact.layout, fact.samples, fact.moments)
            self._follows = made
            self.pruned += 1
            return
        problems: list[str] = []
        folded = 0
        if fact.round == 0:
            try:
                self._model = self._recording.store.model(self._job, fact.model)
                computed = fact.model
            except (OSError, ValueError) as error:
                problems, computed = [f"the initial model: {error}"], b""
        else:
            folded, problems = self._fold(commit)
            computed = sha256(self._model or b"").digest()
        self.versions.append(
            {
                "version": fact.version,
                "round": fact.round,
                "recorded": fact.model.hex(),
                "computed": computed.hex(),
                "equal": computed == fact.model and not problems,
                "updates": folded,
                "entry": commit.entry,
                "problems": problems,
            }
        )

    def _fold(self, commit: Commit) -> tuple[int, list[str]]:
        layout = self._recording.store.layout(self._job)
        optimiser = server_optimiser(commit.job.spec.server, commit.fact.version)
        if self._moments is None:
            self._moments = begun(optimiser, layout.trained_count)
        if self._model is None and self._follows is not None:
            try:
                self._take(self._follows, self._moments)
            except (OSError, ValueError) as error:
                return 0, [f"the version before: {error}"]
        folder = self._folder = self._folder or Folder(layout)
        folder.clear()
        if commit.job.spec.server.clip_centre:
            folder.centre = self._moments[-1]
        problems, weighed = [], []
        rule = aggregation(commit.job.spec.server)
        for request in commit.folded:
            problem = self._recording.open(folder, commit.job, request)
            if not problem and folder.distance() != request.distance:
                problem = "its distance to the last round's change is not the recorded one"
            if problem:
                problems.append(f"device {request.device}, request {request.number}: {problem}")
            else:
                weighed.append((request, commit.weight(request)))
                (folder.count if rule else folder.add)(weighed[-1][1])
        if rule and weighed:
            try:
                told = folder.aggregate(rule, self._recording.again(commit.job, weighed))
            except (Unfit, OSError) as error:
                return 0, [f"an update, read again: {error}"]
            if not problems and leanings([each for each, _ in weighed], told) != commit.fact.leanings:
                problems.append("how the updates lean towards the round's change differs")
        if folder.samples:
            self._model = folder.finish(
                self._model or b"", optimiser, self._moments, commit.job.spec.population
            )
            if digest_of(self._moments) != commit.fact.moments:
                problems.append("what the server optimiser keeps for the next round differs")
        return folder.folded, problems

    def _take(self, version: Known, moments: Moments) -> None:
        store = self._recording.store
        self._model = store.model(self._job, version.model)
        store.read_moments(self._job, version.number, version.moments, moments)
