"""Updates: received once, judged once, answered as often as asked. Pure."""

from __future__ import annotations

from coordinator import facts as f
from coordinator import quarantine
from coordinator.effects import Fold, SendReceipt, SendRequest
from coordinator.inputs import Checked, UpdateCompleted
from coordinator.rounds import advance
from coordinator.state import ENDED_JOB, OPEN_REQUEST, DeviceState, Job, Request, RequestState
from coordinator.turn import Turn
from schemas.events import Accept, Decline, Refusal, RequestRef, StateReply, StateRequest, Verdict
from schemas.ids import transfer_id
from schemas.limits import TEXT_CHARS_MAX


def received(turn: Turn, update: UpdateCompleted) -> None:
    """The update's bytes are durable. The first under its id wins; every later one learns which it was."""
    known = turn.state.by_update_key.get(update.key)
    if known is None or known[1] != update.device:
        text = "no open request of this device has this key; its request was closed long ago"
        turn.tell(update.device, Refusal(code="closed", text=text, transfer=transfer_id(update.digest)))
        return
    job = turn.state.jobs[known[0]]
    request = job.requests[known[1], known[2]]
    if request.digest:
        answer(turn, known[0], request)
        return
    was, in_time = request.state, job.takes(request)
    turn.record(
        f.UpdateReceived(job=job.id, device=update.device, request=request.number, digest=update.digest)
    )
    turn.order(SendReceipt(update.device, job.id, request.number, update.digest))
    if turn.state.devices[update.device].state is DeviceState.REVOKED:
        _reject(turn, job.id, request, "the device was revoked")
    elif job.state in ENDED_JOB:
        _reject(turn, job.id, request, f"late: the job was {job.state}")
    elif was is RequestState.CLOSED or not in_time:
        _reject(turn, job.id, request, _late(job, request))
    else:
        turn.order(Fold(job.id, request.device, request.number))


def _late(job: Job, request: Request) -> str:
    if job.spec.asynchronous is None or job.round is None:
        return f"late: round {request.round} was closed"
    stale = job.round.number + job.round.closed - request.round
    return f"late: of version {request.round - 1}, {stale} versions ago"


def _reject(turn: Turn, job: str, request: Request, reason: str) -> None:
    turn.record(
        f.UpdateJudged(job=job, device=request.device, request=request.number, folded=False, reason=reason)
    )
    turn.tell(request.device, _verdict(job, request))


def answer(turn: Turn, job: str, request: Request) -> None:
    """Receipt, and verdict if there is one, of an update that was received before."""
    turn.order(SendReceipt(request.device, job, request.number, request.digest))
    if request.state in (RequestState.FOLDED, RequestState.REJECTED):
        turn.tell(request.device, _verdict(job, request))


def _verdict(job: str, request: Request) -> Verdict:
    return Verdict(
        job=job,
        request=request.number,
        folded=request.state is RequestState.FOLDED,
        reason=request.reason,
        round=request.round,
    )


def judge(turn: Turn, checked: Checked) -> None:
    """The verdict on a received update: sizes, finiteness and binding were checked, bounds are here."""
    job = turn.state.jobs[checked.job]
    request = job.requests[checked.device, checked.request]
    if request.state is not RequestState.RECEIVED:
        return
    if job.round is None or job.round.number != request.counts_in:
        return  # its buffer was closed meanwhile: it is looked at again for the next one
    problem = checked.problem
    settings = job.spec.asynchronous
    if settings is not None and request.staleness > settings.staleness_max:
        problem = _late(job, request)  # versions were made while it waited for its verdict
    if not problem and checked.norm > job.spec.update_norm_max:
        problem = f"norm: {checked.norm:.6g} exceeds the job's update_norm_max {job.spec.update_norm_max:g}"
    if not problem and checked.samples > job.spec.samples_max:
        problem = f"samples: {checked.samples} exceed the job's samples_max {job.spec.samples_max}"
    steps_max = job.spec.local.steps(checked.samples)
    if not problem and job.spec.server.normalised and not 1 <= checked.steps <= steps_max:
        problem = f"steps: {checked.steps} are not 1 to {steps_max}, as {checked.samples} samples take"
    if not problem and job.spec.scaffold and checked.steps != steps_max:
        problem = f"steps: {checked.steps} are not the {steps_max} that {checked.samples} samples take"
    problem = problem[:TEXT_CHARS_MAX]
    turn.record(
        f.UpdateJudged(
            job=job.id,
            device=request.device,
            request=request.number,
            folded=not problem,
            reason=problem,
            norm=checked.norm,
            samples=checked.samples,
            steps=checked.steps,
            train_s=checked.train_s,
            metrics=checked.metrics,
            evaluation=checked.evaluation,
            content=checked.content,
            distance=checked.distance,
        )
    )
    turn.tell(request.device, _verdict(job.id, request))
    quarantine.judge(turn, job, request)
    advance(turn, job)


def accept(turn: Turn, device: str, event: Accept) -> None:
    """A device will train; repeated messages change nothing."""
    request = _request(turn, device, event.job, event.request)
    if request and request.state is RequestState.ISSUED:
        turn.record(f.RequestAccepted(job=event.job, device=device, request=event.request))


def decline(turn: Turn, device: str, event: Decline) -> None:
    """A device will not train: the round may close, or wait for others."""
    request = _request(turn, device, event.job, event.request)
    if request and request.state in OPEN_REQUEST:
        turn.record(
            f.RequestDeclined(
                job=event.job,
                device=device,
                request=event.request,
                reason=event.reason,
                text=event.text,
            )
        )
        advance(turn, turn.state.jobs[event.job])


def _request(turn: Turn, device: str, job: str, number: int) -> Request | None:
    known = turn.state.jobs.get(job)
    return known.requests.get((device, number)) if known else None


def tell_state(turn: Turn, device: str, asked: StateRequest) -> None:
    """What stands open for a device that came back; requests that it does not know are sent again."""
    held = {(ref.job, ref.request) for ref in asked.requests}
    wanted = [
        (job.id, request.number)
        for job in turn.state.jobs.values()
        if job.round  # when it closes, so do its requests; those of asynchronous jobs outlive it
        for request in job.round.requests
        if request.device == device and request.state in OPEN_REQUEST
    ]
    for job_id, number in wanted:
        if (job_id, number) not in held:
            turn.order(SendRequest(job_id, device, number))
    closed = sorted(held - set(wanted))
    turn.tell(
        device,
        StateReply(
            requests=[RequestRef(job, number) for job, number in wanted],
            closed=[RequestRef(job, number) for job, number in closed],
        ),
    )
