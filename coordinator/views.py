"""The state as people and programs read it: plain values, from a live coordinator or from its log."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from broker.journal import Journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import (
    RequestDeclined,
    RequestsIssued,
    RoundOpened,
    UpdateJudged,
    VersionCommitted,
)
from coordinator.state import Job, State

View = dict[str, Any]

CLAIM_MAX: Final = 1e15
"""What a device says it measured, and is larger, is no measurement: it is left out."""


def devices(state: State) -> list[View]:
    """One line per device, by name."""
    return [
        {
            "device": device.id,
            "entity": device.entity,
            "state": device.state.value,
            "power": device.status.power if device.status else None,
            "cores": device.status.cores if device.status else None,
            "memory_bytes": device.status.memory_bytes if device.status else None,
            "tasks": device.status.tasks if device.status else [],
            "folded": device.folded,
        }
        for _, device in sorted(state.devices.items())
    ]


def jobs(state: State) -> list[View]:
    """One line per job, in order of submission."""
    return [summary(job) for job in state.jobs.values()]


def summary(job: Job) -> View:
    """What a job is doing."""
    return {
        "job": job.id,
        "state": job.state.value,
        "reason": job.reason,
        "task": job.spec.task,
        "rounds_done": job.rounds_done,
        "rounds": job.spec.rounds,
        "version": len(job.versions) - 1,
        "model": job.versions[-1].model.hex() if job.versions else "",
    }


def job(state: State, name: str) -> View | None:
    """One job with its open round; None if there is none of this name."""
    known = state.jobs.get(name)
    if known is None:
        return None
    view = summary(known)
    view["versions"] = [
        {"version": version.number, "round": version.round, "model": version.model.hex()}
        for version in known.versions
    ]
    if known.round:
        view["open_round"] = {
            "round": known.round.number,
            "requests": [
                {"device": request.device, "state": request.state.value, "reason": request.reason}
                for request in known.round.requests
            ],
        }
    return view


def history(journal: Journal, name: str) -> list[View]:
    """A job's committed rounds, from its log: who reported what, and how long it took.

    ``overhead_s`` is from the publishing of the round's requests to the commit of its version, less the
    slowest device's time inside the task's ``train``. Rounds whose beginning was pruned are left out.
    """
    commits: list[tuple[VersionCommitted, float]] = []
    opened: set[int] = set()
    rounds: dict[int, _Round] = {}
    round_of: dict[tuple[str, int], _Round] = {}  # by device and request
    for logged in journal.entries():
        entry = decode_entry(logged.data)
        for fact in entry.facts if isinstance(entry, Turned) else ():
            if getattr(fact, "job", None) != name:
                continue
            match fact:
                case RoundOpened():
                    opened.add(fact.round)
                case RequestsIssued() if fact.round in opened:
                    round_ = rounds.setdefault(fact.round, _Round(entry.at.run_s))
                    round_of |= {(request.device, request.number): round_ for request in fact.requests}
                    round_.asked.update(request.device for request in fact.requests)
                case RequestDeclined() if (fact.device, fact.request) in round_of:
                    round_of[fact.device, fact.request].declined[fact.device] = fact.reason
                case UpdateJudged() if (fact.device, fact.request) in round_of:
                    round_of[fact.device, fact.request].reports.append(fact)
                case VersionCommitted() if fact.round in rounds:
                    commits.append((fact, entry.at.run_s))
                case _:
                    pass
    # Last, because a round's late updates are judged after its commit.
    return [_view(fact, rounds[fact.round], run_s) for fact, run_s in commits]


@dataclass(slots=True)
class _Round:
    """What the log says of one round."""

    issued_run_s: float
    asked: set[str] = field(default_factory=set)
    declined: dict[str, str] = field(default_factory=dict)
    reports: list[UpdateJudged] = field(default_factory=list)


def _view(fact: VersionCommitted, round_: _Round, committed_run_s: float) -> View:
    folded = [report for report in round_.reports if report.folded]
    slowest_s = max((report.train_s for report in folded), default=0.0)
    round_s = committed_run_s - round_.issued_run_s
    return {
        "round": fact.round,
        "version": fact.version,
        "model": fact.model.hex(),
        "round_s": round_s,
        "train_s": slowest_s,
        "overhead_s": round_s - slowest_s,
        "samples": sum(report.samples for report in folded),
        "asked": len(round_.asked),
        "reports": {report.device: report.samples for report in folded},
        "updates": {report.device: report.content.hex() for report in folded},
        "rejected": {report.device: report.reason for report in round_.reports if not report.folded},
        "declined": round_.declined,
        # Of the model that the round began with, on the devices' held-out parts.
        "accuracy_before": _weighted(folded, "accuracy"),
        "loss_before": _weighted(folded, "loss"),
    }


def _weighted(reports: list[UpdateJudged], metric: str) -> float | None:
    """The devices' mean of a metric, by samples."""
    # What devices report is theirs: it may be missing, and it may be no number.
    scores = [(report.samples, report.evaluation.get(metric, math.nan)) for report in reports]
    scores = [(count, score) for count, score in scores if abs(score) <= CLAIM_MAX]  # and no NaN
    weight = sum(count for count, _ in scores)
    return sum(count * score for count, score in scores) / weight if weight else None


def overhead_median_s(rounds: list[View]) -> float:
    """The median over a job's rounds; the first is left out, because workers start in it."""
    overheads_s: list[float] = [view["overhead_s"] for view in rounds]
    return median(overheads_s[1:] or overheads_s)
