"""What rounds and buffers have in common: drawn devices get requests, and a version ends it. Pure."""

from __future__ import annotations

from coordinator import facts as f
from coordinator.effects import Commit, Prepare, SendRequest
from coordinator.inputs import Prepared
from coordinator.state import OPEN_REQUEST, DeviceState, Job, RequestState, Round
from coordinator.strategies.weighing import radius_after
from coordinator.turn import Turn
from schemas.ids import key_id


def prepare(turn: Turn, job: Job, number: int, devices: list[str]) -> None:
    """Order the keys of a round's next requests, and the job's next key if somebody who knew it is gone."""
    epoch = job.epoch + 1 if job.epoch == 0 or job.epoch_spoilt else job.epoch
    turn.order(Prepare(job.id, number, epoch, tuple(devices)))


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
        prepare(turn, job, round_.number, round_.preparing)
        return
    requests = [
        f.IssuedRequest(device, job.newest.get(device, 0) + 1, key)
        for device, key in outcome.keys
        if turn.state.devices[device].state is DeviceState.ACTIVE
    ]
    # An asynchronous round's clock runs since it was opened.
    due_run_s = round_.deadline_run_s if job.spec.asynchronous else deadline_run_s(turn, job)
    turn.record(
        f.RequestsIssued(
            job=job.id,
            round=round_.number,
            epoch=outcome.epoch,
            requests=requests,
            deadline_run_s=due_run_s,
        )
    )
    for request in requests:
        turn.order(SendRequest(job.id, request.device, request.number))


def deadline_run_s(turn: Turn, job: Job) -> float:
    """When a round that begins, or is extended, now is due."""
    return turn.moment.run_s + job.spec.deadline_s


def extend(turn: Turn, job: Job, round_: Round, devices: list[str]) -> None:
    """Give a round more time, and ask these devices, too."""
    _ask_also(turn, job, round_, devices, deadline_run_s(turn, job))
    for request in round_.requests:
        if request.state in OPEN_REQUEST:
            turn.order(SendRequest(job.id, request.device, request.number))  # it may have lost its answer


def ask_also(turn: Turn, job: Job, round_: Round, devices: list[str]) -> None:
    """Ask these devices, too, in the time that the round has."""
    _ask_also(turn, job, round_, devices, round_.deadline_run_s)


def _ask_also(turn: Turn, job: Job, round_: Round, devices: list[str], due_run_s: float) -> None:
    turn.record(f.RoundExtended(job=job.id, round=round_.number, deadline_run_s=due_run_s, devices=devices))
    if devices:
        prepare(turn, job, round_.number, devices)


def close(turn: Turn, job: Job, round_: Round, reason: str) -> None:
    """Take nothing more into a round, and order its version."""
    counted = [request for request in round_.order if request.state is RequestState.FOLDED]
    radius = radius_after(counted, job.spec, round_.radius)
    turn.record(f.RoundClosed(job=job.id, round=round_.number, reason=reason, radius=radius))
    turn.order(Commit(job.id, round_.number))
