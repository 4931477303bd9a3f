"""Drives the core by hand: inputs in, facts through the log's own encoding, ordered work out.

After every step a second state is brought up to date from the recorded facts alone, as after a restart, and
must equal the first; it goes through a snapshot's encoding, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeVar

from coordinator.apply import apply
from coordinator.core import BEHAVIOUR, step
from coordinator.effects import AnswerJoin, Commit, Effect, Fold, MakeInitial, Prepare, Tell
from coordinator.entries import Message, Turned, decode_entry, encode_entry
from coordinator.facts import AnyFact
from coordinator.image import Recovered, decode_image, encode_image
from coordinator.inputs import (
    AnyInput,
    Cancel,
    Checked,
    Committed,
    DeviceSaid,
    Invite,
    JoinAsked,
    Moment,
    Prepared,
    Revoke,
    Started,
    Submit,
    Ticked,
    UpdateCompleted,
)
from coordinator.state import OPEN_REQUEST, Job, JobState, Request, RequestState, State
from coordinator.turn import Turn
from schemas.codec import pack
from schemas.enrolment import Join
from schemas.envelope import Order
from schemas.events import ChallengeAnswer, DeviceStatus, FromDevice
from schemas.ids import key_id
from schemas.jobs import JobSpec
from schemas.keys import Kind
from tests.schemas.parties import FEDERATION, ROOT, box, secret, signing

TASK = "vision"
DAY_S = 86_400.0
WALL_S = 1_700_000_000.0
LAYOUT = secret("layout")
Work = MakeInitial | Prepare | Fold | Commit
F = TypeVar("F", bound=AnyFact)
E = TypeVar("E", bound=Effect)


def status(*tasks: str, agent: str = "0.1") -> DeviceStatus:
    return DeviceStatus(
        agent=agent, cores=4, memory_bytes=1 << 30, power="mains", tasks=list(tasks or (TASK,)), samples={}
    )


def job_spec(name: str = "job", **fields: Any) -> JobSpec:
    """Two rounds of two devices, unless ``fields`` say otherwise."""
    usual = {"rounds": 2, "cohort": 2, "min_reports": 1, "deadline_s": 100.0}
    return JobSpec(name=name, task=TASK, **usual | fields)


def digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


def logged(moment: Moment, input_: AnyInput, facts: list[AnyFact]) -> bytes:
    """A turn as the log keeps it."""
    if isinstance(input_, DeviceSaid | UpdateCompleted):
        message = Message(device=input_.device, header=b"header", signature=bytes(64), body=b"body")
        return encode_entry(Turned(at=moment, behaviour=BEHAVIOUR, input=message, facts=facts))
    return encode_entry(Turned(at=moment, behaviour=BEHAVIOUR, input=input_, facts=facts))


def recover_entry(state: State, data: bytes) -> None:
    """Bring ``state`` up to date by one entry of the log."""
    entry = decode_entry(data)
    assert isinstance(entry, Turned)
    for fact in entry.facts:
        apply(state, fact, entry.at.run_s)


@dataclass(slots=True)
class Drive:
    """A coordinator without its shell: time, devices and ordered work are in the test's hand."""

    state: State = field(default_factory=State)
    recovered: State = field(default_factory=State)
    run_s: float = 0.0
    wall_s: float = WALL_S
    log: list[bytes] = field(default_factory=list)
    facts: list[AnyFact] = field(default_factory=list)
    pending: list[Work] = field(default_factory=list)
    seqs: dict[str, int] = field(default_factory=dict)
    on_turn: Callable[[Turn], None] | None = None
    made: int = 0  # whatever must be fresh is named by it

    def step(self, input_: AnyInput) -> Turn:
        moment = Moment(self.run_s, self.wall_s)
        turn = step(self.state, moment, input_)
        self.log.append(logged(moment, input_, turn.facts))
        recover_entry(self.recovered, self.log[-1])
        assert self.recovered == self.state
        image = encode_image(Recovered(self.recovered))
        assert image == encode_image(decode_image(encode_image(Recovered(self.state)))), "in order, too"
        self.recovered = decode_image(image).state
        self.facts += turn.facts
        self.pending += [effect for effect in turn.effects if isinstance(effect, Work)]
        if self.on_turn:
            self.on_turn(turn)
        return turn

    def fresh(self, what: str) -> str:
        self.made += 1
        return f"{what} {self.made}"

    # Operator.

    def invite(self, device: str, *, valid_s: float = DAY_S) -> bytes:
        """The id of a new token; its key is `signing` of the id's hex."""
        token = secret(self.fresh("token"))[:16]
        key = signing(token.hex()).public
        expires = self.wall_s + valid_s
        self.step(Invite(token=token, token_key=key, device=device, entity="acme", expires_wall_s=expires))
        return token

    def revoke(self, device: str) -> Turn:
        return self.step(Revoke(device=device, reason="lost"))

    def submit(self, spec: JobSpec) -> Job:
        self.step(Submit(job=spec.name, spec=spec, parameters=""))
        return self.state.jobs[spec.name]

    def cancel(self, job: str = "job") -> Turn:
        return self.step(Cancel(job=job))

    def tick(self, after_s: float = 0.0) -> Turn:
        self.run_s += after_s
        return self.step(Ticked())

    def restart(self) -> Turn:
        """Queued work is forgotten; what is still needed is ordered again."""
        self.pending.clear()
        return self.step(Started())

    # Devices.

    def join(
        self, token: bytes, device: str, *, keys: str = "", nonce: str = "", forged: bool = False
    ) -> Turn:
        """Ask with the keys named ``keys`` (of the device's first life by default)."""
        join = Join(
            federation=FEDERATION,
            root=ROOT.public,
            token=token,
            device=device,
            signing=signing(keys or device).public,
            box=box(keys or device).public,
            nonce=secret(nonce),
        )
        packed = pack(join)
        by_token = signing("forger" if forged else token.hex()).sign(Kind.JOIN_TOKEN, packed)
        challenge = secret(self.fresh("challenge"))
        return self.step(JoinAsked(join=join, packed=packed, by_token=by_token, challenge=challenge))

    def say(self, device: str, event: FromDevice) -> Turn:
        return self.step(DeviceSaid(device=device, order=self._order(device), event=event))

    def prove(self, device: str) -> Turn:
        return self.say(device, ChallengeAnswer(challenge=self.state.devices[device].challenge))

    def enrol(self, *devices: str, keys: str = "") -> None:
        for device in devices:
            self.join(self.invite(device), device, keys=keys)
            self.prove(device)
            self.say(device, status())

    def complete(self, device: str, key: bytes, content: str) -> Turn:
        """An update sealed to the request key with the id ``key`` is durable."""
        sender = key_id(self.state.devices[device].signing)
        order = self._order(device)
        return self.step(
            UpdateCompleted(device=device, sender=sender, order=order, key=key, digest=digest(content))
        )

    def update(self, device: str, job: str = "job", *, content: str = "") -> Turn:
        """The device answers its newest request."""
        request = self.newest(device, job)
        return self.complete(device, key_id(request.key), content or f"{job} {device} {request.number}")

    def _order(self, device: str) -> Order:
        self.seqs[device] = self.seqs.get(device, -1) + 1
        return Order(0, self.seqs[device])

    # Ordered work.

    def work(self, order: Work) -> AnyInput | None:
        """What the shell answers to ``order``, looking at the state as it does."""
        job = self.state.jobs[order.job]
        match order:
            case MakeInitial():
                made = job.state is JobState.PREPARING
                return self._committed(job, 0) if made else None
            case Prepare():
                if job.round is None or job.round.number != order.round:
                    return None
                keys = [(device, box(self.fresh(device)).public) for device in order.devices]
                return Prepared(job=job.id, round=order.round, epoch=order.epoch, keys=keys)
            case Fold():
                return checked(order)
            case Commit():
                if job.round is None or job.round.number != order.round or not job.round.closed:
                    return None
                return self._committed(job, order.round)

    def _committed(self, job: Job, round_: int) -> Committed:
        number, model = len(job.versions), digest(f"{job.id} version {round_}")
        return Committed(job=job.id, version=number, round=round_, model=model, layout=LAYOUT, samples=10)

    def settle(self) -> None:
        """Do all ordered work, in order, until none is left."""
        while self.pending:
            outcome = self.work(self.pending.pop(0))
            if outcome is not None:
                self.step(outcome)

    # Looking.

    def newest(self, device: str, job: str = "job") -> Request:
        found = self.state.jobs[job]
        return found.requests[device, found.newest[device]]

    def asked(self, job: str = "job") -> list[str]:
        """Devices with an open request in the round, sorted."""
        round_ = self.state.jobs[job].round
        return sorted(r.device for r in round_.requests if r.state in OPEN_REQUEST) if round_ else []

    def count(self, state: RequestState, job: str = "job") -> int:
        round_ = self.state.jobs[job].round
        return round_.count(state) if round_ else 0

    def recorded(self, kind: type[F]) -> list[F]:
        return [fact for fact in self.facts if isinstance(fact, kind)]


def started(
    devices: Iterable[str] = "abcde", *, cohort: int = 2, min_reports: int = 1, over_selection: float = 1.0
) -> Drive:
    """A job of two rounds whose first round, if there are devices for it, has just been issued."""
    drive = Drive()
    drive.enrol(*devices)
    drive.submit(job_spec(cohort=cohort, min_reports=min_reports, over_selection=over_selection))
    drive.settle()
    return drive


def checked(order: Fold, problem: str = "", *, norm: float = 1.0, samples: int = 10) -> Checked:
    return Checked(
        job=order.job,
        device=order.device,
        request=order.request,
        problem=problem,
        norm=norm,
        samples=samples,
        train_s=0.5,
        evaluation={"accuracy": 0.5},
        content=digest("content"),
    )


def ordered(turn: Turn, kind: type[E]) -> list[E]:
    return [effect for effect in turn.effects if isinstance(effect, kind)]


def told(turn: Turn) -> list[tuple[str, object]]:
    return [(tell.device, tell.event) for tell in ordered(turn, Tell)]


def answer(turn: Turn) -> AnswerJoin:
    (found,) = ordered(turn, AnswerJoin)
    return found
