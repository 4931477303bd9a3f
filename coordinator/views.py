"""The state as people and programs read it: plain values, from a live coordinator or from its log."""

from __future__ import annotations

from typing import Any

from coordinator.evaluation import ALARMS, due
from coordinator.state import ENDED_JOB, Alarm, Job, State

View = dict[str, Any]


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
            "quarantine": {
                job.id: job.quarantine[device.id]
                for job in state.jobs.values()
                if job.state not in ENDED_JOB and job.quarantined(device.id)
            },
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
        "evaluation": _evaluation(job),
    }


def _evaluation(job: Job) -> View | None:
    """What is known of how good the versions are; None of a job that does not ask."""
    settings, progress = job.spec.evaluation, job.progress
    if settings is None:
        return None
    best = {"version": progress.best, "score": progress.best_score} if progress.best >= 0 else None
    return {
        "metric": settings.metric,
        "mode": "min" if settings.least_is_best else "max",
        "by": settings.source,
        "best": best,
        "without_improvement": progress.stale,
        "waiting": due(job),
        "problem": progress.problem,
        "alarms": [_alarm(alarm) for alarm in progress.alarms],
    }


def _alarm(alarm: Alarm) -> View:
    words = ALARMS.get(alarm.kind, alarm.kind).format(value=alarm.value, bound=alarm.bound)
    return {"version": alarm.version, "by": alarm.source, "kind": alarm.kind, "text": words}


def alarms(state: State) -> list[View]:
    """Every alarm of the jobs that have not ended."""
    found: list[View] = []
    for job in state.jobs.values():
        if job.state not in ENDED_JOB:
            found += [{"job": job.id} | _alarm(alarm) for alarm in job.progress.alarms]
    return found


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
    view["quarantine"] = {name: until for name, until in known.quarantine.items() if known.quarantined(name)}
    if known.round:
        view["open_round"] = {
            "round": known.round.number,
            "requests": [
                {"device": request.device, "state": request.state.value, "reason": request.reason}
                for request in known.round.requests
            ],
        }
    return view
