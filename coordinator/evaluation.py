"""How good a job's versions are: what devices and coordinator measured, alarms, and when a job is over. Pure.

All of it is for jobs that ask (``[evaluation]``). What a version scores on the devices is known when the
updates that were trained on it make the next one; of the last version it never is. What it scores at the
coordinator comes some time after it was made; no round waits for that.
"""

from __future__ import annotations

from copy import deepcopy
from statistics import median
from typing import Final

from coordinator import facts as f
from coordinator.effects import EvaluateVersion
from coordinator.inputs import Evaluated
from coordinator.progress import NORMS, NORMS_FACTOR, better
from coordinator.spread import Told, spread
from coordinator.state import ENDED_JOB, Job, JobState, Progress, RequestState
from coordinator.turn import Turn
from schemas.jobs import CENTRAL, FEDERATED, EvaluationSettings

RISING: Final = "rising"
FAR_ABOVE: Final = "far-above"
UNMEASURED: Final = "unmeasured"
NORMS_GROW: Final = "norms"
ALARMS: Final = {
    RISING: "the loss rose {bound:g} versions in a row, to {value:.6g}",
    FAR_ABOVE: "the loss is {value:.6g}, and {bound:.6g} is much already",
    UNMEASURED: "a metric is missing, or is no finite number",
    NORMS_GROW: "the median norm of the updates is {value:.6g}, and {bound:.6g} is much already",
}
"""What each kind says to people."""


def by_devices(turn: Turn, job: Job) -> None:
    """Record what the devices measured of the version that the open round began with, if it has updates."""
    fact = of_devices(job)
    if fact is not None:
        _record(turn, job, fact)


def of_devices(job: Job) -> f.VersionEvaluated | None:
    """What the updates of the open round tell of its base; None if there is nothing to be told."""
    settings = job.spec.evaluation
    if settings is None or job.round is None:
        return None
    # In an asynchronous job the others measured an older version.
    folded = [one for one in job.round.order if one.state is RequestState.FOLDED and not one.staleness]
    if not folded:
        return None
    told = [Told(request.evaluation, request.samples) for request in folded]
    metrics = {}
    for name in dict.fromkeys((settings.metric, settings.watched)):
        found = spread(told, name)
        # With fewer, the few that still tell something could be those that lie.
        if found is not None and 2 * found.devices >= len(folded):
            metrics[name] = found.mean
    return f.VersionEvaluated(
        job=job.id,
        version=job.versions[-1].number,
        source=FEDERATED,
        metrics=metrics,
        devices=len(folded),
        norm=median(request.norm for request in folded),
    )


def at_coordinator(turn: Turn, job: Job, outcome: Evaluated) -> bool:
    """Record what a version scores at the coordinator. False if that was known."""
    if job.spec.evaluation is None or not job.progress.tried < outcome.version < len(job.versions):
        return False
    fact = f.VersionEvaluated(
        job=job.id,
        version=outcome.version,
        source=CENTRAL,
        metrics=outcome.metrics,
        problem=outcome.problem,
    )
    _record(turn, job, fact)
    return True


def due(job: Job) -> int | None:
    """The version that is to be evaluated at the coordinator next: the newest, which stands for those that
    were passed over."""
    settings = job.spec.evaluation
    if settings is None or not settings.dataset or not job.versions:
        return None
    newest = job.versions[-1].number
    wanted = newest if job.state in ENDED_JOB else newest - newest % settings.every
    return wanted if wanted > job.progress.tried else None


def order_due(turn: Turn, job: Job) -> None:
    """Order what is `due`; what was ordered before may be ordered again."""
    version = due(job)
    if version is not None:
        turn.order(EvaluateVersion(job.id, version))


def ending(job: Job) -> tuple[JobState, str] | None:
    """How and why a job is over before its last round, or None."""
    settings, progress = job.spec.evaluation, job.progress
    if settings is None:
        return None
    if progress.alarms and settings.stop_on_divergence:
        alarm = progress.alarms[-1]
        return JobState.FAILED, f"diverged: version {alarm.version}, {alarm.kind}"
    scored = progress.best >= 0
    if scored and settings.target is not None and not better(settings, settings.target, progress.best_score):
        reached = f"version {progress.best} scores {progress.best_score:.6g}, of {settings.target:g}"
        return JobState.FINISHED, f"target reached: {reached}"
    if scored and settings.patience and progress.stale >= settings.patience:
        text = f"no better than version {progress.best} in {progress.stale} evaluations"
        return JobState.FINISHED, f"stopped early: {text}"
    return None


def _record(turn: Turn, job: Job, fact: f.VersionEvaluated) -> None:
    before = deepcopy(job.progress)
    turn.record(fact)
    if fact.problem or job.spec.evaluation is None:
        return
    for kind, value, bound in _alarms(job.spec.evaluation, fact.source, before, job.progress):
        alarm = f.AlarmRaised(
            job=job.id, version=fact.version, source=fact.source, kind=kind, value=value, bound=bound
        )
        turn.record(alarm)


def _alarms(
    settings: EvaluationSettings, source: str, before: Progress, after: Progress
) -> list[tuple[str, float, float]]:
    """Kind, value and bound of what begins to be wrong; what went on being wrong was told."""
    found: list[tuple[str, float, float]] = []
    loss = after.trends.get(source)
    if loss is not None and loss != before.trends.get(source):
        if settings.alarm_rises and loss.rises == settings.alarm_rises:
            found.append((RISING, loss.last, float(loss.rises)))
        if _crossed(before, after, source):
            found.append((FAR_ABOVE, loss.last, settings.alarm_factor * before.trends[source].least))
    if set(after.missing) - set(before.missing):
        found.append((UNMEASURED, 0.0, 0.0))
    if source == FEDERATED and _crossed(before, after, NORMS):
        bound = NORMS_FACTOR * before.trends[NORMS].least
        found.append((NORMS_GROW, after.trends[NORMS].last, bound))
    return found


def _crossed(before: Progress, after: Progress, name: str) -> bool:
    return name in before.trends and after.trends[name].above and not before.trends[name].above
