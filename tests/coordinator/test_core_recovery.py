"""Whatever happens, in whatever order: the log tells the whole state, and the promises hold.

`Drive` compares the state with the one recovered from the log after every step; the machine adds devices,
operators and a shell that answer late, twice, in any order, or not at all.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.effects import Fold
from coordinator.inputs import AnyInput
from coordinator.state import ENDED_JOB, OPEN_REQUEST, DeviceState, RequestState, State
from coordinator.turn import CommandRefused
from schemas.events import Accept, Decline, StateRequest
from schemas.jobs import AsyncSettings
from schemas.limits import OPEN_UPDATES_MAX
from tests.coordinator.drive import Drive, checked, job_spec, recover_entry, status
from tests.coordinator.watch import Watch

DEVICES = st.sampled_from(["a", "b", "c", "d"])
JOBS = st.sampled_from(["one", "two"])
PICK = st.integers(0, 2**16)
SMALL = st.integers(1, 3)
BUSY = st.sampled_from([0, 0, 1, 2, 3])
HONEST = ("x", "y", "z")
PROBLEMS = st.sampled_from(["", "", "", "finite: NaN"])
REASONS = st.sampled_from(["busy", "policy"])


class Federation(RuleBasedStateMachine):
    """Rules are what may happen; `Watch` is told every turn and knows what must never be in one."""

    def __init__(self) -> None:
        super().__init__()
        self.drive = Drive()
        self.seen = Watch(self.drive)
        self.tokens: list[tuple[bytes, str, float]] = []
        self.outcomes: list[AnyInput] = []

    # What may happen: operators and time.

    @initialize(members=st.integers(0, 4), reports=SMALL, busy=BUSY)
    def begin(self, members: int, reports: int, busy: int) -> None:
        self.drive.enrol(*"abcd"[:members])
        self.submit("one", rounds=2, cohort=reports, reports=reports, more=1.5, busy=busy)

    @rule(device=DEVICES, valid_s=st.sampled_from([10.0, 1000.0]))
    def invite(self, device: str, valid_s: float) -> None:
        try:
            token = self.drive.invite(device, valid_s=valid_s)
        except CommandRefused:
            assert self.drive.state.devices[device].state is not DeviceState.REVOKED
            return
        self.tokens.append((token, device, self.drive.wall_s + valid_s))

    @rule(device=DEVICES)
    def revoke(self, device: str) -> None:
        if device in self.drive.state.devices:
            self.drive.revoke(device)

    @rule(job=JOBS, rounds=SMALL, cohort=SMALL, reports=SMALL, more=st.sampled_from([1.0, 1.5]), busy=BUSY)
    def submit(self, job: str, rounds: int, cohort: int, reports: int, more: float, busy: int) -> None:
        """``busy`` devices train at a time in an asynchronous job; 0: it has rounds."""
        if job in self.drive.state.jobs:
            return
        spec = job_spec(
            job,
            rounds=2 * rounds if busy else rounds,
            cohort=cohort,
            min_reports=min(reports, cohort),
            over_selection=1.0 if busy else more,
            asynchronous=AsyncSettings(concurrency=busy, staleness_max=busy) if busy else None,
        )
        self.drive.submit(spec)

    @rule(job=JOBS, really=st.integers(0, 4))
    def cancel(self, job: str, really: int) -> None:
        found = self.drive.state.jobs.get(job)
        if found and found.state not in ENDED_JOB and really == 0:
            self.drive.cancel(job)

    @rule(
        after_s=st.sampled_from([0.0, 1.0, 99.0, 100.0, 250.0]),
        wall_s=st.sampled_from([0.0, 20.0, -86_400.0]),
    )
    def tick(self, after_s: float, wall_s: float) -> None:
        self.drive.wall_s += wall_s
        self.drive.tick(after_s)

    @rule(lost=st.booleans())
    def restart(self, *, lost: bool) -> None:
        if lost:
            self.outcomes.clear()
        self.drive.restart()

    # Devices.

    @precondition(lambda self: self.tokens)
    @rule(pick=PICK, keys=st.sampled_from(["", "", "thief"]), device=DEVICES, own=st.integers(0, 5))
    def join(self, pick: int, keys: str, device: str, own: int) -> None:
        token, invited, expires = self.tokens[pick % len(self.tokens)]
        device = invited if own else device
        life = self.seen.lives.get(device, 0)
        turn = self.drive.join(token, device, keys=keys or f"{device} {life}")
        if turn.facts:
            assert list(self.drive.state.by_sender.values()).count(device) == life + 1, (
                "each life has new keys"
            )
            assert device == invited
            assert self.drive.wall_s <= expires

    @rule(device=DEVICES)
    def prove(self, device: str) -> None:
        if device in self.drive.state.devices:
            self.drive.prove(device)

    @rule(device=DEVICES, able=st.booleans(), agent=st.sampled_from(["1", "2"]))
    def say_status(self, device: str, agent: str, *, able: bool) -> None:
        if device not in self.drive.state.devices:
            return
        self.drive.say(device, status(*([] if able else ["other"]), agent=agent))

    @rule(device=DEVICES, number=st.integers(1, 3), job=JOBS, reason=REASONS, accept=st.booleans())
    def reply(self, device: str, number: int, job: str, reason: str, *, accept: bool) -> None:
        if device not in self.drive.state.devices:
            return
        event = Accept(job=job, request=number)
        declined = Decline(job=job, request=number, reason=reason, text="")
        self.drive.say(device, event if accept else declined)

    @rule(device=DEVICES)
    def ask_state(self, device: str) -> None:
        if device in self.drive.state.devices:
            self.drive.say(device, StateRequest(requests=[], key_set=1))

    @precondition(lambda self: self.seen.keys)
    @rule(pick=PICK, other=st.integers(0, 3), foreign=st.integers(0, 9), by=DEVICES)
    def update(self, pick: int, other: int, foreign: int, by: str) -> None:
        device, key = self.seen.keys[-1 - pick % len(self.seen.keys)]
        sender = device if foreign else by
        if sender not in self.drive.state.devices:
            return
        self.drive.complete(sender, key, f"{key.hex()} {max(0, other - 2)}")

    # The shell.

    @precondition(lambda self: self.drive.pending)
    @rule(pick=PICK, again=st.integers(0, 4), problem=PROBLEMS)
    def work(self, pick: int, again: int, problem: str) -> None:
        """Do some ordered work, perhaps not for the last time; its outcome is on its way."""
        at = pick % len(self.drive.pending) if pick % 3 == 0 else 0
        order = self.drive.pending[at] if again == 0 else self.drive.pending.pop(at)
        outcome = self.drive.work(order)
        if isinstance(order, Fold):
            outcome = checked(order, problem)
        if outcome is not None:
            self.outcomes.append(outcome)

    @precondition(lambda self: self.outcomes)
    @rule(pick=PICK, again=st.integers(0, 4))
    def deliver(self, pick: int, again: int) -> None:
        at = pick % len(self.outcomes) if pick % 3 == 0 else 0
        self.drive.step(self.outcomes[at] if again == 0 else self.outcomes.pop(at))

    # What must hold at all times.

    @invariant()
    def open_requests_are_bounded(self) -> None:
        state = self.drive.state
        for job in state.jobs.values():
            open_ = [request for request in job.requests.values() if request.state in OPEN_REQUEST]
            assert len({request.device for request in open_}) == len(open_), "one open request per device"
            assert not open_ or job.id in self.seen.open_round
            for device in job.newest:
                assert sum(at[0] == device for at in job.requests) <= OPEN_UPDATES_MAX
        assert len(state.by_update_key) == sum(len(job.requests) for job in state.jobs.values())

    @invariant()
    def what_waits_for_a_verdict_is_in_an_open_round(self) -> None:
        for job in self.drive.state.jobs.values():
            waiting = [r for r in job.requests.values() if r.state is RequestState.RECEIVED]
            now = job.round.later if job.round and job.round.closed else job.round.order if job.round else []
            assert all(any(request is one for one in now) for request in waiting)
            assert not job.carried, "within one turn only"
            for id_ in self.seen.received:
                assert id_ in self.seen.judged or id_[0] != job.id or job.requests[id_[1:]] in waiting

    # In the end.

    def teardown(self) -> None:
        recovered = State()
        for entry in self.drive.log:
            recover_entry(recovered, entry)
        assert recovered == self.drive.state
        self.drive.restart()
        self.settle()
        assert set(self.seen.received) == self.seen.judged, "every receipted update has a verdict"
        self.drive.enrol(*HONEST)
        for _ in range(12):
            self.settle()
            self.answer_all()
            self.drive.tick(250)
        open_jobs = [job.id for job in self.drive.state.jobs.values() if job.state not in ENDED_JOB]
        assert open_jobs == [], "with three willing devices every job comes to its end"

    def settle(self) -> None:
        while self.drive.pending or self.outcomes:
            if self.drive.pending:
                outcome = self.drive.work(self.drive.pending.pop(0))
                self.outcomes += [outcome] if outcome else []
            if self.outcomes:
                self.drive.step(self.outcomes.pop(0))

    def answer_all(self) -> None:
        for job in self.drive.state.jobs.values():
            for device in self.drive.asked(job.id):
                self.drive.update(device, job.id)
        self.settle()


TestFederation = Federation.TestCase
TestFederation.settings = settings(max_examples=60, stateful_step_count=60)
