"""Asynchronous jobs: buffered aggregation (Nguyen et al. 2022, "Federated learning with buffered asynchronous
aggregation", algorithm 1). Pure.

``concurrency`` devices train at a time, each from the version that was newest when it was asked. Whatever
they send counts in the round that is open then, with a weight by its staleness
(``coordinator.strategies.staleness``); a round is a buffer that is full with ``cohort`` updates (the paper's
K), or closes at its deadline with ``min_reports``. Requests outlive rounds, up to ``staleness_max`` versions.
A device that has reported is free, and whoever is free may be asked at once, for the newest version; but no
version holds more than ``per_device_max`` of its updates, and one that declined is left alone until the next.

FedAsync (Xie, Koyejo and Gupta 2019, "Asynchronous federated optimization") is a buffer of one. A buffer that
never fills is closed by time: semi-synchronous rounds of ``deadline_s``.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from coordinator import asking
from coordinator import facts as f
from coordinator.cohort import eligible, select
from coordinator.effects import Fold
from coordinator.state import OPEN_REQUEST, Job, RequestState, Round, State
from coordinator.turn import Turn
from schemas.jobs import AsyncSettings
from schemas.limits import OPEN_UPDATES_MAX

ASKED_MAX: Final = OPEN_UPDATES_MAX // 2  # requests to a device in a buffer: what is older is forgotten
COUNTED: Final = frozenset({RequestState.RECEIVED, RequestState.FOLDED, RequestState.REJECTED})


def go_on(turn: Turn, job: Job, settings: AsyncSettings) -> None:
    """Open a buffer, close it when it is full, and keep as many devices training as there should be."""
    round_ = job.round
    if round_ is None:
        number = job.rounds_done + 1
        able, wanted = _free(turn.state, job, settings), _vacancies(job, settings)
        devices = select(job, number, 0, able, wanted, turn.state.devices)
        turn.record(f.RoundOpened(job=job.id, round=number, base=job.versions[-1].model, cohort=devices))
        if devices:
            asking.prepare(turn, job, number, devices)
        return
    if round_.closed:
        return
    # With enough in it, an overdue buffer waits for nothing but the verdicts on what it has.
    waits = _pending(round_) and round_.count(RequestState.FOLDED) >= job.spec.min_reports
    overdue = turn.moment.run_s >= round_.deadline_run_s and not waits
    wanted = settings.concurrency if overdue else _vacancies(job, settings)
    able = _free(turn.state, job, settings, again=overdue) if wanted else []
    idle = not (able or round_.preparing or round_.count(*OPEN_REQUEST))
    if reason := _full(job, round_, idle=idle, overdue=overdue):
        asking.close(turn, job, round_, reason)
        for request in round_.later:
            turn.order(Fold(job.id, request.device, request.number))
    elif not round_.preparing and (able or overdue):
        devices = select(job, round_.number, len(round_.requests), able, wanted, turn.state.devices)
        (asking.extend if overdue else asking.ask_also)(turn, job, round_, devices)


def _vacancies(job: Job, settings: AsyncSettings) -> int:
    """How many more devices are to train."""
    requests = job.round.requests if job.round else job.carried
    return max(settings.concurrency - sum(request.state in OPEN_REQUEST for request in requests), 0)


def _free(state: State, job: Job, settings: AsyncSettings, *, again: bool = False) -> list[str]:
    """Devices that may be asked now, sorted. ``again``: those, too, that declined or were rejected."""
    busy: set[str] = set()
    counted: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for request in job.round.requests if job.round else job.carried:
        asked[request.device] += 1
        if request.state in OPEN_REQUEST or (request.state is RequestState.DECLINED and not again):
            busy.add(request.device)
        elif request.state in COUNTED and not (again and request.state is RequestState.REJECTED):
            counted[request.device] += 1
    busy.update(device for device, count in counted.items() if count >= settings.per_device_max)
    busy.update(device for device, count in asked.items() if count >= ASKED_MAX)
    return [device for device in eligible(state, job) if device not in busy]


def _pending(round_: Round) -> bool:
    return any(request.state is RequestState.RECEIVED for request in round_.order)


def _full(job: Job, round_: Round, *, idle: bool, overdue: bool) -> str:
    """Why the buffer closes now; empty if it does not. ``idle``: nobody trains, and nobody can be asked."""
    folded = round_.count(RequestState.FOLDED)
    if folded >= job.spec.cohort:
        return "the buffer is full"
    if folded < job.spec.min_reports or _pending(round_):
        return ""
    if overdue:
        return "the deadline has passed"
    return "everybody asked has answered" if idle else ""
