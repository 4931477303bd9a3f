"""How facts change the state. Decides nothing; recovery is this, over the recorded facts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Final

from coordinator import facts as f
from coordinator.progress import follow
from coordinator.state import (
    OPEN_REQUEST,
    Alarm,
    Device,
    DeviceState,
    Job,
    JobState,
    Request,
    RequestState,
    Round,
    State,
    TokenRecord,
    Version,
)
from schemas.envelope import Order
from schemas.ids import key_id
from schemas.limits import OPEN_UPDATES_MAX

NOT_ITS_FAULT: Final = ("late", "key")  # why an update was rejected that says nothing of its device


def apply(state: State, fact: f.AnyFact, run_s: float) -> None:
    """Change ``state`` by one fact. Decides nothing, and never fails for a fact that was recorded."""
    _apply(fact, state, run_s)


@singledispatch
def _apply(fact: f.Fact, state: State, run_s: float) -> None:
    raise TypeError(f"no rule for the fact {type(fact).__name__}")


@_apply.register
def _(fact: f.Invited, state: State, run_s: float) -> None:
    for token in state.tokens.values():
        token.void |= token.device == fact.device and not token.join
    state.tokens[fact.token] = TokenRecord(fact.token_key, fact.device, fact.entity, fact.expires_wall_s)


@_apply.register
def _(fact: f.Joined, state: State, run_s: float) -> None:
    state.tokens[fact.token].join = fact.join
    state.devices[fact.device] = Device(fact.device, fact.entity, fact.signing, fact.box, fact.challenge)
    state.by_sender[key_id(fact.signing)] = fact.device


@_apply.register
def _(fact: f.Activated, state: State, run_s: float) -> None:
    state.devices[fact.device].state = DeviceState.ACTIVE


@_apply.register
def _(fact: f.Heard, state: State, run_s: float) -> None:
    device = state.devices[fact.device]
    device.window = device.window.after(Order(fact.incarnation, fact.seq))


@_apply.register
def _(fact: f.StatusChanged, state: State, run_s: float) -> None:
    state.devices[fact.device].status = fact.status
    for job in state.jobs.values():
        job.unfit.discard(fact.device)


@_apply.register
def _(fact: f.DeviceRevoked, state: State, run_s: float) -> None:
    state.devices[fact.device].state = DeviceState.REVOKED
    for token in state.tokens.values():
        token.void |= token.device == fact.device
    for job in state.jobs.values():
        if fact.device in job.newest:
            job.epoch_spoilt = True
        if job.round:
            theirs = (request for request in job.round.requests if request.device == fact.device)
            _close(theirs, OPEN_REQUEST | {RequestState.DECLINED})  # an update may follow a decline


@_apply.register
def _(fact: f.JobSubmitted, state: State, run_s: float) -> None:
    state.jobs[fact.job] = Job(fact.job, fact.spec, fact.parameters, run_s)


@_apply.register
def _(fact: f.VersionCommitted, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    job.versions.append(
        Version(fact.version, fact.round, fact.model, fact.layout, fact.samples, fact.moments)
    )
    job.state = JobState.RUNNING
    if job.round and job.spec.asynchronous:
        training = [request for request in job.round.requests if request.state in OPEN_REQUEST]
        job.carried = training + job.round.later
    job.round = None


@_apply.register
def _(fact: f.RoundOpened, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    job.round = Round(fact.round, fact.base, list(fact.cohort), radius=job.radius)
    if job.spec.asynchronous:
        job.round.deadline_run_s = run_s + job.spec.deadline_s
        _close(request for request in job.carried if not job.takes(request))
        left = [request for request in job.carried if request.state is not RequestState.CLOSED]
        job.round.requests, job.carried = left, []
        job.round.order = [request for request in left if request.state is RequestState.RECEIVED]


@_apply.register
def _(fact: f.RequestsIssued, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    round_ = _round(job)
    if fact.epoch > job.epoch:
        job.epoch, job.epoch_spoilt = fact.epoch, False
    round_.preparing = []
    round_.deadline_run_s = fact.deadline_run_s
    for issued in fact.requests:
        request = Request(issued.device, issued.number, fact.round, issued.key)
        round_.requests.append(request)
        job.requests[issued.device, issued.number] = request
        job.newest[issued.device] = issued.number
        state.by_update_key[key_id(issued.key)] = (job.id, issued.device, issued.number)
        _forget_old(state, job, issued.device)


@_apply.register
def _(fact: f.RoundExtended, state: State, run_s: float) -> None:
    round_ = _round(state.jobs[fact.job])
    round_.deadline_run_s = fact.deadline_run_s
    round_.preparing = list(fact.devices)


@_apply.register
def _(fact: f.RequestAccepted, state: State, run_s: float) -> None:
    state.jobs[fact.job].requests[fact.device, fact.request].state = RequestState.ACCEPTED


@_apply.register
def _(fact: f.RequestDeclined, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    request = job.requests[fact.device, fact.request]
    request.state, request.reason = RequestState.DECLINED, f"{fact.reason}: {fact.text}"
    if fact.reason in ("policy", "data", "task"):
        job.unfit.add(fact.device)


@_apply.register
def _(fact: f.UpdateReceived, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    request = job.requests[fact.device, fact.request]
    number, round_ = job.takes(request), job.round
    request.digest, request.state = fact.digest, RequestState.RECEIVED
    if round_ is None or not number:
        return
    request.into = number if number != request.round else 0
    (round_.order if number == round_.number else round_.later).append(request)
    if job.spec.asynchronous and not any(known is request for known in round_.requests):
        round_.requests.append(request)  # declined in an earlier round, and trained after all


@_apply.register
def _(fact: f.UpdateJudged, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    request = job.requests[fact.device, fact.request]
    # An update that was folded is rejected after all when its job ends before its round did.
    state.devices[fact.device].folded += fact.folded - (request.state is RequestState.FOLDED)
    request.state = RequestState.FOLDED if fact.folded else RequestState.REJECTED
    request.reason, request.norm, request.samples = fact.reason, fact.norm, fact.samples
    # Only such a job needs them: images of releases that did not keep them say the same for all others.
    request.steps = fact.steps if job.spec.server.normalised else 0
    request.distance = fact.distance
    if job.spec.quarantine_after:
        _count_strike(job, fact)
    request.train_s, request.evaluation = fact.train_s, fact.evaluation


@_apply.register
def _(fact: f.DeviceQuarantined, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    job.quarantine[fact.device] = fact.until
    job.strikes.pop(fact.device, None)


@_apply.register
def _(fact: f.DeviceReleased, state: State, run_s: float) -> None:
    for job in state.jobs.values():
        job.quarantine.pop(fact.device, None)
        job.strikes.pop(fact.device, None)


@_apply.register
def _(fact: f.RoundClosed, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    round_ = _round(job)
    round_.closed = True
    job.radius = fact.radius
    if job.spec.asynchronous is None:
        _close(round_.requests)
        return
    # The buffer is full: what has no verdict yet counts in the next one.
    round_.later = [request for request in round_.order if request.state is RequestState.RECEIVED]
    round_.order = [request for request in round_.order if request.state is not RequestState.RECEIVED]
    for request in round_.later:
        request.into = round_.number + 1


@_apply.register
def _(fact: f.VersionEvaluated, state: State, run_s: float) -> None:
    follow(state.jobs[fact.job], fact)


@_apply.register
def _(fact: f.AlarmRaised, state: State, run_s: float) -> None:
    alarm = Alarm(fact.version, fact.source, fact.kind, fact.value, fact.bound)
    state.jobs[fact.job].progress.alarms.append(alarm)


@_apply.register
def _(fact: f.JobEnded, state: State, run_s: float) -> None:
    job = state.jobs[fact.job]
    job.state, job.reason = JobState(fact.state), fact.reason
    _close(job.round.requests if job.round else job.carried)
    job.round, job.carried = None, []


def _count_strike(job: Job, fact: f.UpdateJudged) -> None:
    kind, colon, _ = fact.reason.partition(":")
    if fact.folded:
        job.strikes.pop(fact.device, None)
    elif colon and kind not in NOT_ITS_FAULT:
        job.strikes[fact.device] = job.strikes.get(fact.device, 0) + 1


def _round(job: Job) -> Round:
    if job.round is None:
        raise LookupError(f"job {job.id} has no open round")
    return job.round


def _close(requests: Iterable[Request], states: frozenset[RequestState] = OPEN_REQUEST) -> None:
    for request in requests:
        if request.state in states:
            request.state = RequestState.CLOSED


def _forget_old(state: State, job: Job, device: str) -> None:
    """Keep the newest `OPEN_UPDATES_MAX` requests to a device; what is older counts as closed."""
    if old := job.requests.pop((device, job.newest[device] - OPEN_UPDATES_MAX), None):
        state.by_update_key.pop(key_id(old.key), None)
