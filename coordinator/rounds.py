"""Jobs and their rounds: a round is a buffer of updates with a closing rule. Pure.

Closing rule of a synchronous job (``buffered`` has that of an asynchronous one): nothing receipted waits for
its verdict, and the wanted cohort was folded, or everybody asked has answered, or the deadline has passed;
and at least ``min_reports`` were folded. With fewer at the deadline, the round goes on with further devices:
what was folded stays counted.
"""

from __future__ import annotations

import math

from coordinator import asking, buffered, evaluation
from coordinator import facts as f
from coordinator.cohort import eligible, select
from coordinator.effects import Commit, Fold, MakeInitial, SendModel, SendRequest, ShutOut
from coordinator.inputs import Cancel, Committed, Evaluated, Submit, WorkFailed
from coordinator.state import (
    ENDED_JOB,
    OPEN_REQUEST,
    DeviceState,
    Job,
    JobState,
    RequestState,
    Round,
)
from coordinator.turn import CommandRefused, Turn
from schemas.events import JobFinished, Refusal, Verdict
from schemas.ids import model_request_id


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
    evaluation.by_devices(turn, job)
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
    elif not _over(turn, job):
        evaluation.order_due(turn, job)
        advance(turn, job)


def evaluated(turn: Turn, outcome: Evaluated) -> None:
    """What a version scores at the coordinator is known, or that it cannot be: the job may end."""
    job = turn.state.jobs[outcome.job]
    if evaluation.at_coordinator(turn, job, outcome) and job.state is JobState.RUNNING:
        _over(turn, job)


def _over(turn: Turn, job: Job) -> bool:
    """End the job if it is good enough, gets no better, or went wrong."""
    ending = evaluation.ending(job)
    if ending is not None:
        _end(turn, job, *ending)
    return ending is not None


def advance_all(turn: Turn) -> None:
    """Whatever may now happen in any job, because time passed or a device came."""
    for job in turn.state.jobs.values():
        advance(turn, job)


def advance(turn: Turn, job: Job) -> None:
    """Open a round, close it, or give it more time, as the rules say."""
    if job.state is not JobState.RUNNING:
        return
    round_ = job.round
    if job.spec.asynchronous is not None:
        buffered.go_on(turn, job, job.spec.asynchronous)
    elif round_ is None:
        _open(turn, job)
    elif not round_.closed and not round_.preparing:
        _close_or_extend(turn, job, round_)


def _open(turn: Turn, job: Job) -> None:
    candidates = eligible(turn.state, job)
    # The first round waits for the whole cohort to come, but not longer than a round may last.
    patient = job.rounds_done == 0 and turn.moment.run_s < job.submitted_run_s + job.spec.deadline_s
    if len(candidates) < (job.spec.cohort if patient else job.spec.min_reports):
        return
    number = job.rounds_done + 1
    cohort = select(job, number, 0, candidates, job.spec.cohort, turn.state.devices)
    turn.record(f.RoundOpened(job=job.id, round=number, base=job.versions[-1].model, cohort=cohort))
    asking.prepare(turn, job, number, cohort)


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
    asking.close(turn, job, round_, reason)


def _extend(turn: Turn, job: Job, round_: Round, wanted: int) -> None:
    busy = {
        request.device
        for request in round_.requests
        if request.state in OPEN_REQUEST or request.state is RequestState.FOLDED
    }
    candidates = [device for device in eligible(turn.state, job) if device not in busy]
    attempt = len(round_.requests)
    devices = select(job, round_.number, attempt, candidates, wanted, turn.state.devices)
    asking.extend(turn, job, round_, devices)


def _end(turn: Turn, job: Job, state: JobState, reason: str) -> None:
    """End a job. What was receipted in an open round, folded or not, is rejected: no version holds it."""
    order = [*job.round.order, *job.round.later] if job.round else list(job.carried)
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
    evaluation.order_due(turn, job)


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
        evaluation.order_due(turn, job)
        round_ = job.round
        if round_ is None:
            continue
        for request in round_.order:
            if request.state in (RequestState.RECEIVED, RequestState.FOLDED):
                turn.order(Fold(job.id, request.device, request.number))
        if round_.closed:
            turn.order(Commit(job.id, round_.number))
            for request in round_.later:
                turn.order(Fold(job.id, request.device, request.number))
        elif round_.preparing:
            asking.prepare(turn, job, round_.number, round_.preparing)
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
