"""What is known of how good a job's versions are, from the facts about them. Decides nothing."""

from __future__ import annotations

from typing import Final

from coordinator.facts import VersionEvaluated
from coordinator.state import Job, Progress, Trend
from schemas.jobs import CENTRAL, FEDERATED, EvaluationSettings

NORMS: Final = "norms"
"""Name of the trend of the updates' median norm; a loss's has that of its source."""
NORMS_FACTOR: Final = 10.0
"""So many times its least is far: norms shrink while a model converges, and may rise again."""


def follow(job: Job, fact: VersionEvaluated) -> None:
    """Take one evaluation into the job's `Progress`, which is changed."""
    settings, progress = job.spec.evaluation or EvaluationSettings(), job.progress
    if fact.source == CENTRAL:
        progress.tried, progress.problem = max(progress.tried, fact.version), fact.problem
    if fact.problem:
        return
    if fact.source == settings.source:
        _score(progress, settings, fact)
    _miss(progress, settings, fact)
    watched = fact.metrics.get(settings.watched)
    if watched is not None:
        _follow(progress.trends, fact.source, watched, settings.alarm_factor)
    if fact.source == FEDERATED:
        _follow(progress.trends, NORMS, fact.norm, NORMS_FACTOR)


def better(settings: EvaluationSettings, score: float, than: float, by: float = 0.0) -> bool:
    """Whether ``score`` is better by more than ``by``."""
    return score < than - by if settings.least_is_best else score > than + by


def _score(progress: Progress, settings: EvaluationSettings, fact: VersionEvaluated) -> None:
    score = fact.metrics.get(settings.metric)
    first = progress.best < 0
    if score is not None and (first or better(settings, score, progress.best_score)):
        progress.best, progress.best_score = fact.version, score
    if score is not None and (first or better(settings, score, progress.mark, settings.min_delta)):
        progress.mark, progress.stale = score, 0
    else:
        progress.stale += 1


def _miss(progress: Progress, settings: EvaluationSettings, fact: VersionEvaluated) -> None:
    source = fact.source
    known = {name for name in progress.known if name.startswith(f"{source}/")}
    told = {f"{source}/{name}" for name in (settings.metric, settings.watched) if name in fact.metrics}
    wanted = known | ({f"{source}/{settings.metric}"} if source == settings.source else set())
    progress.known = sorted({*progress.known, *told})
    others = {name for name in progress.missing if not name.startswith(f"{source}/")}
    progress.missing = sorted(others | (wanted - told))


def _follow(trends: dict[str, Trend], name: str, value: float, factor: float) -> None:
    trend = trends.get(name)
    if trend is None:
        trends[name] = Trend(value, value)
        return
    trend.rises = trend.rises + 1 if value > trend.last else 0
    trend.above = 0 < factor * trend.least < value
    trend.last, trend.least = value, min(trend.least, value)
