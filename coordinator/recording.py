"""A recorded federation, read in the order of its log: what became a version, of which updates.

Needs the state directory alone (a copy will do, with its ``keys/``): no broker, no device, no coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from broker.bodies import Bodies
from broker.ports import Ports
from coordinator.agreement import UNKNOWN, Agreement
from coordinator.apply import apply
from coordinator.blockwise import Blockwise, Stored
from coordinator.entries import Turned, decode_entry
from coordinator.facts import AnyFact, UpdateJudged, UpdateReceived, VersionCommitted
from coordinator.fold import Folder
from coordinator.keystore import KeyStore, load_identity
from coordinator.looking import look
from coordinator.negotiation import wanted_encoding
from coordinator.opening import Expected
from coordinator.recovery import open_whole
from coordinator.state import Job, Request, RequestState, State
from coordinator.store import Store
from coordinator.strategies import Weight, weigh
from schemas.errors import WireError
from schemas.ids import key_id


class NothingToReplay(Exception):
    """The recording has nothing of what was asked for. The text says what there is."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """An entry of the log that others, its input or the state before it contradict."""

    entry: int
    what: str


@dataclass(frozen=True, slots=True)
class Commit:
    """A recorded version; ``job`` is as it was just before, with the round that made it still open."""

    fact: VersionCommitted
    entry: int
    job: Job
    complete: bool = True
    """Whether all of its updates came behind what was pruned."""

    @property
    def received(self) -> list[Request]:
        """The updates that came in time, in the order of folding, whatever their verdict."""
        return self.job.round.order if self.job.round else []

    @property
    def folded(self) -> list[Request]:
        """Those that the version holds."""
        return [request for request in self.received if request.state is RequestState.FOLDED]

    def weight(self, request: Request) -> Weight:
        """Of one of them."""
        radius = self.job.round.radius if self.job.round else 0.0
        return weigh(request, self.job.spec, radius)


class Recording:
    """The log and bodies of a state directory. Raises `broker.journal.JournalError`,
    `coordinator.keystore.KeysMissing`."""

    def __init__(self, ports: Ports, directory: Path) -> None:
        self._identity = load_identity(ports.files, directory)
        self.directory = directory
        self.journal, base = open_whole(ports.files, directory, self._identity.federation)
        self.state = base.recovered.state if base else State()
        self._pruned = {
            job.id: _counting(job) for job in self.state.jobs.values()
        }  # what came before the log
        self._after = base.mark.index if base else 0
        self._keys = KeyStore(ports.files, directory, ports.entropy)
        self.store = Store(ports.files, directory, self._identity, self._keys)
        self._bodies = Bodies(ports.files, directory / "bodies")
        self._signers: dict[tuple[str, str, int], bytes] = {}  # who signed: a device may enrol anew later
        self._judged: dict[tuple[str, str, int], tuple[int, UpdateJudged]] = {}  # with its entry
        self._agreement = Agreement(self.state, self._after)
        self.wrong: Wrong | None = None
        """The first entry that cannot be, of those that were read."""

    def commits(self, job: str = "") -> Iterator[Commit]:
        """Every version that the log records (of one job, if named), once; to the end, or to an entry that
        nothing can follow, which is `wrong`."""
        for logged in self.journal.entries(self._after):
            try:
                entry = decode_entry(logged.data)
                self._note(logged.index, self._agreement.entry(entry, logged.index, logged.head))
                if not isinstance(entry, Turned):
                    continue
                for fact in entry.facts:
                    self._note(logged.index, self._agreement.fact(fact, entry))
                    if isinstance(fact, VersionCommitted) and (not job or fact.job == job):
                        known = self.state.jobs[fact.job]
                        pruned = self._pruned.setdefault(fact.job, set())
                        yield Commit(fact, logged.index, known, not pruned)
                        pruned -= _keys(known.round.order if known.round else [])
                    apply(self.state, fact, entry.at.run_s)
                    self._keep(fact, logged.index)
            except WireError as error:
                self._note(logged.index, str(error))
                return  # nothing can be said of what rests on it
            except LookupError as error:
                self._note(logged.index, f"{UNKNOWN}: {error}")
                return

    def _note(self, index: int, problem: str) -> None:
        if problem and self.wrong is None:
            self.wrong = Wrong(index, problem)

    def _keep(self, fact: AnyFact, index: int) -> None:
        """For `open`."""
        if isinstance(fact, UpdateReceived):
            signer = self.state.devices[fact.device].signing
            self._signers[fact.job, fact.device, fact.request] = signer
        if isinstance(fact, UpdateJudged):
            self._judged[fact.job, fact.device, fact.request] = index, fact

    def with_steps(self, job: str, request: Request) -> Request:
        """With the steps that its verdict tells: the state keeps them only where the job counts them."""
        judged = self._judged.get((job, request.device, request.number))
        return replace(request, steps=judged[1].steps) if judged else request

    def _expected(self, job: Job, request: Request) -> Expected | None:
        key = self._keys.request_key(job.id, request.round, key_id(request.key))
        if key is None:
            return None
        return Expected(
            self._identity.federation,
            job.id,
            request.number,
            job.base(request).model,
            self.store.layout(job.id),
            key,
            self._signers[job.id, request.device, request.number],
            wanted_encoding(job.spec, self.store.layout(job.id)),
        )

    def again(self, job: Job, weighed: list[tuple[Request, Weight]]) -> Blockwise:
        """Updates of the job's round that `open` found nothing against."""
        stored = [
            Stored(request.digest, expected, weight.scale)
            for request, weight in weighed
            if (expected := self._expected(job, request)) is not None
        ]
        return Blockwise(self._bodies, stored, self.store.layout(job.id).trained_count)

    def open(self, folder: Folder, job: Job, request: Request) -> str:
        """Check and open an update of the job's round into the folder's buffer; what speaks against it.

        Its device's signature, its binding to the request, and its recorded norm and samples are checked.
        """
        if (job.id, request.device, request.number) not in self._signers:
            return "the log of it was pruned"
        expected = self._expected(job, request)
        if expected is None:
            return "the key of its request was destroyed"
        try:
            looked = look(folder, self._bodies, request.digest, expected)
        except OSError as error:
            return str(error)
        if looked.problem or looked.update is None:
            return looked.problem
        index, recorded = self._judged[job.id, request.device, request.number]
        if (looked.norm, looked.update.samples) != (recorded.norm, recorded.samples):
            return f"its norm or samples are not what log entry {index} says"
        return ""


def _keys(requests: Iterable[Request]) -> set[tuple[str, int]]:
    return {(request.device, request.number) for request in requests}


def _counting(job: Job) -> set[tuple[str, int]]:
    """Whose updates were received and are in no version yet: of the open round, or of the one after it."""
    return _keys((*job.round.order, *job.round.later)) if job.round else set()
