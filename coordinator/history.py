"""What became of a job, round by round, from the records."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import median
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from coordinator.spread import Told, spreads
from coordinator.state import RequestState
from coordinator.tables import jobs, requests, rounds
from schemas.jobs import JobSpec

View = dict[str, Any]


def history(tables: Connection, job: str) -> list[View]:
    """A job's committed rounds: who reported what, and how long it took.

    ``overhead_s`` is from the publishing of the round's requests to the commit of its version, less the
    slowest device's time inside the task's ``train``. Rounds whose beginning is not known are left out.
    """
    asked: dict[int, list[Row[Any]]] = {}
    counted: dict[int, list[Row[Any]]] = {}
    for request in tables.execute(select(requests).where(requests.c.job == job).order_by(requests.c.entry)):
        asked.setdefault(request.round, []).append(request)
        counted.setdefault(request.counts_in, []).append(request)
    committed = rounds.c.job == job, rounds.c.version.is_not(None), rounds.c.issued_run_s.is_not(None)
    found = tables.execute(select(rounds).where(*committed).order_by(rounds.c.version))
    return [_view(each, asked.get(each.round, []), counted.get(each.round, [])) for each in found]


def troubles(tables: Connection, job: str) -> list[View]:
    """What did not become part of the model, oldest first: declined requests and rejected updates, each
    with the round that it was asked in and the reason."""
    refused = requests.c.state.in_([RequestState.DECLINED, RequestState.REJECTED])
    found = select(requests).where(requests.c.job == job, refused).order_by(requests.c.entry)
    return [
        {
            "round": request.round,
            "device": request.device,
            "state": request.state,
            "reason": f"{request.reason}: {request.text}" if request.text else request.reason,
        }
        for request in tables.execute(found)
    ]


def specification(tables: Connection, job: str) -> JobSpec | None:
    """What was submitted under this name."""
    found = tables.execute(select(jobs.c.spec).where(jobs.c.job == job)).scalar()
    return None if found is None else msgspec.json.decode(found, type=JobSpec)


def _view(round_: Row[Any], asked: list[Row[Any]], folded: list[Row[Any]]) -> View:
    rejected, declined = (
        [request for request in asked if request.state == state]
        for state in (RequestState.REJECTED, RequestState.DECLINED)
    )
    evaluation = spreads([Told(json.loads(one.evaluation), one.samples) for one in folded])
    means = {name: found.mean for name, found in evaluation.items()}
    # A device of an asynchronous job may have trained for longer than the round lasted.
    fresh = [request.train_s for request in folded if request.round == round_.round]
    slowest_s = max(fresh, default=0.0)
    round_s = round_.committed_run_s - round_.issued_run_s
    return {
        "round": round_.round,
        "version": round_.version,
        "model": round_.model,
        "round_s": round_s,
        "train_s": slowest_s,
        "overhead_s": round_s - slowest_s,
        "samples": sum(request.samples for request in folded),
        "asked": len({request.device for request in asked}),
        "staleness": [round_.round - request.round for request in folded],
        "reports": {request.device: request.samples for request in folded},
        "cosines": {request.device: request.cosine for request in folded if request.cosine is not None},
        "left_out": [request.device for request in folded if request.counted is False],
        "norms": {request.device: request.norm for request in folded},
        "updates": {request.device: request.content for request in folded},
        "rejected": {request.device: request.reason for request in rejected},
        "declined": {request.device: request.reason for request in declined},
        # Of the model that the round began with, on the devices' held-out parts.
        "accuracy_before": means.get("accuracy"),
        "loss_before": means.get("loss"),
        "evaluation": {name: asdict(found) for name, found in evaluation.items()},
    }


def overhead_median_s(rounds: list[View]) -> float:
    """The median over a job's rounds; the first is left out, because workers start in it."""
    overheads_s: list[float] = [view["overhead_s"] for view in rounds]
    return median(overheads_s[1:] or overheads_s)
