"""One job of a recording as a script: who was asked, what each said, what came of it, in log order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from coordinator import facts as f
from coordinator.apply import apply
from coordinator.entries import Logged, Turned
from coordinator.onto import OntoRefused
from coordinator.state import ENDED_JOB, Device, DeviceState, Job, JobState, State, Version
from schemas.ids import key_id

Asked = tuple[str, int]
"""A recorded request of the job: its device, and its number."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """These devices were asked, on the version ``base``; ``again``: because too few had answered in time."""

    run_s: float
    round: int
    base: bytes
    asked: tuple[Asked, ...]
    again: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """A device would train."""

    run_s: float
    asked: Asked


@dataclass(frozen=True, slots=True)
class Declined:
    """A device would not train."""

    run_s: float
    asked: Asked
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Received:
    """An update was received: sealed to the key id ``recipient``."""

    run_s: float
    asked: Asked
    round: int
    base: bytes
    recipient: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on an update."""

    run_s: float
    asked: Asked
    round: int
    folded: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The round went on without the answers of these."""

    run_s: float
    asked: tuple[Asked, ...]


Step = Drawn | Accepted | Declined | Received | Judged | Silent


@dataclass(slots=True)
class Script:
    """``devices`` as they were at the end; ``versions`` of the job; ``finished``: it came to its end."""

    job: Job
    devices: dict[str, Device]
    versions: list[Version]
    steps: list[Step]
    finished: bool

    def drawn(self) -> Iterator[Drawn]:
        """Who was asked, each time that anybody was."""
        return (step for step in self.steps if isinstance(step, Drawn) and step.asked)

    @property
    def crowded(self) -> int:
        """So many updates were folded in one round, at most."""
        folded = Counter(step.round for step in self.steps if isinstance(step, Judged) and step.folded)
        return max(folded.values(), default=0)

    @property
    def played(self) -> list[str]:
        """The devices that were asked at all."""
        return sorted({device for step in self.drawn() for device, _ in step.asked})


@dataclass(slots=True)
class _Writer:
    job: str
    state: State = field(default_factory=State)
    steps: list[Step] = field(default_factory=list)
    rounds: dict[Asked, tuple[int, bytes, bytes]] = field(default_factory=dict)  # round, base, key
    open: dict[Asked, None] = field(default_factory=dict)  # asked, and nothing came of it yet
    judged: set[Asked] = field(default_factory=set)
    again: bool = False
    over: bool = False

    def read(self, fact: f.AnyFact, run_s: float) -> None:
        """One fact, in the order of the log."""
        if isinstance(fact, f.DeviceRevoked):
            self._silent(run_s, [one for one in self.open if one[0] == fact.device])
        elif getattr(fact, "job", "") == self.job and not self.over:
            self._of_job(fact, run_s)
        apply(self.state, fact, run_s)

    def _of_job(self, fact: f.AnyFact, run_s: float) -> None:
        match fact:
            case f.RoundOpened() | f.RoundExtended():
                self.again = isinstance(fact, f.RoundExtended)
            case f.RequestsIssued():
                self._drawn(fact, run_s)
            case f.RequestAccepted():
                self.steps.append(Accepted(run_s, (fact.device, fact.request)))
            case f.RequestDeclined():
                asked = fact.device, fact.request
                self.open.pop(asked, None)
                self.steps.append(Declined(run_s, asked, fact.reason, fact.text))
            case f.UpdateReceived():
                self._received(fact, run_s)
            case f.UpdateJudged():
                self._judged(fact, run_s)
            case f.RoundClosed():
                self._silent(run_s, list(self.open))
            case f.JobEnded():
                # What comes after a finished job is late; a job that was cancelled ends with its recording.
                self.over = fact.state != JobState.FINISHED
            case _:
                pass

    def _drawn(self, fact: f.RequestsIssued, run_s: float) -> None:
        round_ = self.state.jobs[self.job].round
        base = round_.base if round_ else b""
        asked = tuple((request.device, request.number) for request in fact.requests)
        for request in fact.requests:
            self.rounds[request.device, request.number] = fact.round, base, request.key
        self.open |= dict.fromkeys(asked)
        self.steps.append(Drawn(run_s, fact.round, base, asked, self.again))

    def _received(self, fact: f.UpdateReceived, run_s: float) -> None:
        asked = fact.device, fact.request
        self.open.pop(asked, None)
        if self.state.devices[fact.device].state is DeviceState.REVOKED:
            self.judged.add(asked)  # nobody is revoked in a replay
            return
        round_, base, key = self.rounds[asked]
        self.steps.append(Received(run_s, asked, round_, base, key_id(key), fact.digest))

    def _judged(self, fact: f.UpdateJudged, run_s: float) -> None:
        asked = fact.device, fact.request
        if asked not in self.judged:  # else it is told what came of the job
            self.judged.add(asked)
            self.steps.append(Judged(run_s, asked, self.rounds[asked][0], fact.folded, fact.reason))

    def _silent(self, run_s: float, asked: list[Asked]) -> None:
        for one in asked:
            self.open.pop(one, None)
        if asked:
            self.steps.append(Silent(run_s, tuple(asked)))


def read_script(entries: Iterable[Logged], job: str) -> Script:
    """The script of ``job``. Raises `OntoRefused` if nobody was asked to train it."""
    writer = _Writer(job)
    for entry in entries:
        for fact in entry.facts if isinstance(entry, Turned) else ():
            writer.read(fact, entry.at.run_s)
    known = writer.state.jobs.get(job)
    if known is None or not known.versions or not any(isinstance(one, Drawn) for one in writer.steps):
        raise OntoRefused(f"nothing to play: the recording asks nobody to train a job {job}")
    if known.spec.asynchronous is not None:
        raise OntoRefused(
            f"job {job} is asynchronous: what a device is asked to train depends on when others answer, "
            f"so its rounds can't be asked for again; `replay` without --onto computes its versions anew"
        )
    finished = known.state in ENDED_JOB and not writer.over
    return Script(known, writer.state.devices, known.versions, writer.steps, finished)


def the_job(entries: Iterable[Logged], job: str) -> str:
    """``job``, or the only one that was trained. Raises `OntoRefused`."""
    asked: dict[str, None] = {}
    for entry in entries:
        for fact in entry.facts if isinstance(entry, Turned) else ():
            if isinstance(fact, f.RequestsIssued):
                asked[fact.job] = None
    if not job and len(asked) == 1:
        return next(iter(asked))
    if job not in asked:
        there = ", ".join(sorted(asked)) or "none"
        raise OntoRefused(
            f"{f'no job {job} was trained' if job else 'name a job with --job'}; trained: {there}"
        )
    return job
