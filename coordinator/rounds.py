"""Jobs and their rounds: a round is a buffer of updates with a closing rule. Pure.

Synchronous closing rule: nothing receipted waits for its verdict, and the wanted cohort was folded, or
everybody asked has answered, or the deadline has passed; and at least ``min_reports`` were folded. With
fewer at the deadline, the round goes on with further devices: what was folded stays counted.
"""

from __future__ import annotations

import math

from coordinator import facts as f
from coordinator.cohort import eligible, select
from coordinator.effects import Commit, Fold, MakeInitial, Prepare, SendModel, SendRequest, ShutOut
from coordinator.inputs import Cancel, Committed, Prepared, Submit, WorkFailed
from coordinator.state import (
    ENDED_JOB,
    OPEN_REQUEST,
    DeviceState,
    Job,
    JobState,
    RequestState,
    Round,
)
from coordinator.strategies.weighing import radius_after
from coordinator.turn import CommandRefused, Turn
from schemas.events import JobFinished, Refusal, Verdict
from schemas.ids import key_id, model_request_id


def submit(turn: Turn, command: Submit) -> None:
    """A new job; its version 0 is ordered. Raises `CommandRefused` for a name that is taken."""
    if command.job in turn.state.jobs:
        raise CommandRefused(f"there is a job {command.job} already; choose another name")
    turn.record(f.JobSubmitted(job=command.job, spec=command.spec, parameters=command.parameters))
    turn.order(MakeInitial(command.job))


def cancel(turn: Turn, command: Cancel) -> None:
    """End a job at the operator's wish. Raises `CommandRefused` if there is nothing to end."""
    job = turn.state.jobs.get(command.job)
    if job is None:
        raise CommandRefused(f"there is no job {command.job}; `fedbus-coordinator jobs list` shows them")
    if job.state in ENDED_JOB:
        raise CommandRefused(f"job {job.id} has ended already ({job.state})")
    _end(turn, job, JobState.CANCELLED, "cancelled by the operator")


def fail(turn: Turn, outcome: WorkFailed) -> None:
    """End a job whose ordered work cannot be done."""
    job = turn.state.jobs[outcome.job]
    if job.state not in ENDED_JOB:
        _end(turn, job, JobState.FAILED, outcome.text)


def commit(turn: Turn, outcome: Committed) -> None:
    """A version's files are durable: it exists from now on."""
    job = turn.state.jobs[outcome.job]
    if job.state in ENDED_JOB or len(job.versions) != outcome.version:
        return
    turn.record(
        f.VersionCommitted(
            job=job.id,
            version=outcome.version,
            round=outcome.round,
            model=outcome.model,
            layout=outcome.layout,
            samples=outcome.samples,
            moments=outcome.moments,
            leanings=outcome.leanings,
        )
    )
    if job.rounds_done >= job.spec.rounds:
        _end(turn, job, JobState.FINISHED, f"{job.rounds_done} rounds")
    else:
        advance(turn, job)


def issue(turn: Turn, outcome: Prepared) -> None:
    """The request keys exist: issue the requests, and start the round's clock."""
    job = turn.state.jobs[outcome.job]
    round_ = job.round
    if round_ is None or round_.number != outcome.round or not round_.preparing or round_.closed:
        return
    used = any(key_id(key) in turn.state.by_update_key for _, key in outcome.keys)
    if used or sorted(device for device, _ in outcome.keys) != sorted(round_.preparing):
        return  # of an earlier order; the outcome of the one that counts is still to come
    if job.epoch_spoilt and outcome.epoch <= job.epoch:
        # Somebody was revoked meanwhile: what is sealed from now on must not open with a key they know.
        _prepare(turn, job, round_.number, round_.preparing)
        return
    requests = [
        f.IssuedRequest(device, job.newest.get(device, 0) + 1, key)
        for device, key in outcome.keys
        if turn.state.devices[device].state is DeviceState.ACTIVE
    ]
    deadline_run_s = turn.moment.run_s + job.spec.deadline_s
    turn.record(
        f.RequestsIssued(
            job=job.id,
            round=round_.number,
            epoch=outcome.epoch,
            requests=requests,
            deadline_run_s=deadline_run_s,
        )
    )
    for request in requests:
        turn.order(SendRequest(job.id, request.device, request.number))
    advance(turn, job)


def advance_all(turn: Turn) -> None:
    """Whatever may now happen in any job, because time passed or a device came."""
    for job in turn.state.jobs.values():
        advance(turn, job)


def advance(turn: Turn, job: Job) -> None:
    """Open a round, close it, or give it more time, as the rules say."""
    if job.state is not JobState.RUNNING:
        return
    if job.round is None:
        _open(turn, job)
    elif not job.round.closed and not job.round.preparing:
        _close_or_extend(turn, job, job.round)


def _open(turn: Turn, job: Job) -> None:
    candidates = eligible(turn.state, job)
    # The first round waits for the whole cohort to come, but not longer than a round may last.
    patient = job.rounds_done == 0 and turn.moment.run_s < job.submitted_run_s + job.spec.deadline_s
    if len(candidates) < (job.spec.cohort if patient else job.spec.min_reports):
        return
    number = job.rounds_done + 1
    cohort = select(job, number, 0, candidates, job.spec.cohort)
    turn.record(f.RoundOpened(job=job.id, round=number, base=job.versions[-1].model, cohort=cohort))
    _prepare(turn, job, number, cohort)


def _prepare(turn: Turn, job: Job, number: int, devices: list[str]) -> None:
    epoch = job.epoch + 1 if job.epoch == 0 or job.epoch_spoilt else job.epoch
    turn.order(Prepare(job.id, number, epoch, tuple(devices)))


def _close_or_extend(turn: Turn, job: Job, round_: Round) -> None:
    if any(request.state is RequestState.RECEIVED for request in reversed(round_.order)):
        return  # its verdict comes first
    folded = round_.count(RequestState.FOLDED)
    waiting = round_.count(*OPEN_REQUEST)
    overdue = turn.moment.run_s >= round_.deadline_run_s
    if folded >= job.spec.cohort:
        reason = "the cohort has reported"
    elif folded >= job.spec.min_reports and not waiting:
        reason = "everybody asked has answered"
    elif folded >= job.spec.min_reports and overdue:
        reason = "the deadline has passed"
    else:
        if overdue:
            _extend(turn, job, round_, job.spec.cohort - folded)
        return
    counted = [request for request in round_.order if request.state is RequestState.FOLDED]
    radius = radius_after(counted, job.spec.server, job.spec.local, round_.radius)
    turn.record(f.RoundClosed(job=job.id, round=round_.number, reason=reason, radius=radius))
    turn.order(Commit(job.id, round_.number))


def _extend(turn: Turn, job: Job, round_: Round, wanted: int) -> None:
    busy = {
        request.device
        for request in round_.requests
        if request.state in OPEN_REQUEST or request.state is RequestState.FOLDED
    }
    candidates = [device for device in eligible(turn.state, job) if device not in busy]
    devices = select(job, round_.number, len(round_.requests), candidates, wanted)
    turn.record(
        f.RoundExtended(
            job=job.id,
            round=round_.number,
            deadline_run_s=turn.moment.run_s + job.spec.deadline_s,
            devices=devices,
        )
    )
    for request in round_.requests:
        if request.state in OPEN_REQUEST:
            turn.order(SendRequest(job.id, request.device, request.number))  # it may have lost its answer
    if devices:
        _prepare(turn, job, round_.number, devices)


def _end(turn: Turn, job: Job, state: JobState, reason: str) -> None:
    """End a job. What was receipted in an open round, folded or not, is rejected: no version holds it."""
    order = list(job.round.order) if job.round and state is not JobState.FINISHED else []
    turn.record(f.JobEnded(job=job.id, state=state, reason=reason))
    for request in order:
        if request.state in (RequestState.RECEIVED, RequestState.FOLDED):
            turn.record(
                f.UpdateJudged(
                    job=job.id,
                    device=request.device,
                    request=request.number,
                    folded=False,
                    reason=f"the job was {state}",
                )
            )
            turn.tell(
                request.device,
                Verdict(
                    job=job.id,
                    request=request.number,
                    folded=False,
                    reason=request.reason,
                    round=request.round,
                ),
            )
    for device in sorted(job.newest):
        turn.tell(device, JobFinished(job=job.id, state=state, version=len(job.versions) - 1))


def offer_newest(turn: Turn, device: str, name: str) -> None:
    """A device wants the newest version of a job: whoever was asked to train it may have it, nobody else."""
    job = turn.state.jobs.get(name)
    if job is None or device not in job.newest:
        text = f"no model of job {name} for this device: it was never asked to train it"
        turn.tell(device, Refusal(code="closed", text=text, transfer=model_request_id(name)))
        return
    # A device that was revoked knows the key, and no later round will roll it.
    rolled = job.epoch_spoilt and job.state in ENDED_JOB
    turn.order(SendModel(device, job.id, job.versions[-1].number, job.state, job.epoch + rolled))


def resume(turn: Turn) -> None:
    """After a start: order again what was ordered and has no outcome."""
    invited = {token.device for token in turn.state.tokens.values() if not token.void and not token.join}
    for device in turn.state.devices.values():
        if device.state is DeviceState.REVOKED and device.id not in invited:
            turn.order(ShutOut(device.id))
    for job in turn.state.jobs.values():
        if job.state is JobState.PREPARING:
            turn.order(MakeInitial(job.id))
        round_ = job.round
        if round_ is None:
            continue
        for request in round_.order:
            if request.state in (RequestState.RECEIVED, RequestState.FOLDED):
                turn.order(Fold(job.id, request.device, request.number))
        if round_.closed:
            turn.order(Commit(job.id, round_.number))
        elif round_.preparing:
            _prepare(turn, job, round_.number, round_.preparing)
        for request in round_.requests:
            if request.state is RequestState.ISSUED:
                turn.order(SendRequest(job.id, request.device, request.number))
    advance_all(turn)


def next_deadline_run_s(jobs: list[Job], ticked_run_s: float = -math.inf) -> float | None:
    """When the next timer is due, in run seconds. ``ticked_run_s`` is the moment of the last tick: what was
    due by then had its turn, and now waits for a device or a verdict, not for time."""
    due = [
        job.round.deadline_run_s if job.round else job.submitted_run_s + job.spec.deadline_s
        for job in jobs
        if job.state is JobState.RUNNING
        and (job.round is None or not (job.round.preparing or job.round.closed))
    ]
    return min((due_s for due_s in due if due_s > ticked_run_s), default=None)
