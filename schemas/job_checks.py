"""Whether the fields of a job fit together."""

from __future__ import annotations

import math
import re
from importlib.metadata import entry_points
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from schemas.errors import JobRefused
from schemas.ids import checked_name
from schemas.limits import COHORT_MAX

if TYPE_CHECKING:
    from schemas.jobs import EvaluationSettings, JobSpec

BUILT_IN: Final = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
STRATEGIES: Final = "fedbus.strategies"  # entry points of other packages' server optimisers
KRUM_MAX: Final = 1_000  # devices in a round of multi_krum: it compares each with each
TASK_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def optimisers() -> list[str]:
    """Names of the server optimisers that there are here: fedbus' own, then those that were installed."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=STRATEGIES)} - {*BUILT_IN})]


def checked_job(spec: JobSpec) -> JobSpec:
    """``spec`` if its fields fit together; `JobRefused` otherwise."""
    try:
        checked_name(spec.name, "job")
    except ValueError as error:
        raise JobRefused(str(error)) from error
    if not TASK_NAME.fullmatch(spec.task):
        raise JobRefused(f"job {spec.name}: task {spec.task!r} is not a name of a task")
    if spec.cohort * spec.over_selection > COHORT_MAX:
        raise JobRefused(
            f"job {spec.name}: cohort {spec.cohort} times over_selection {spec.over_selection:g} is more "
            f"than {COHORT_MAX} devices in a round; lower one of them"
        )
    if spec.server.optimiser not in BUILT_IN and spec.server.optimiser not in (known := optimisers()):
        raise JobRefused(
            f"job {spec.name}: server.optimiser {spec.server.optimiser!r} is none of {', '.join(known)}; "
            f"install the package that has it as an entry point of group {STRATEGIES!r}"
        )
    clip = spec.server.clip_norm
    if clip is not None and clip > spec.update_norm_max:
        raise JobRefused(
            f"job {spec.name}: server.clip_norm {clip:g} exceeds update_norm_max "
            f"{spec.update_norm_max:g}: what is longer is rejected, so none would be clipped; lower it"
        )
    _check_asynchronous(spec)
    _check_pull(spec)
    if spec.evaluation is not None:
        _check_evaluation(spec.name, spec.evaluation)
    if spec.min_reports > spec.cohort:
        raise JobRefused(
            f"job {spec.name}: min_reports {spec.min_reports} exceeds cohort {spec.cohort}: "
            f"a round could never close; lower min_reports or raise cohort"
        )
    _check_clipping(spec)
    _check_aggregation(spec)
    _check_scaffold(spec)
    return spec


def _check_clipping(spec: JobSpec) -> None:
    server = spec.server
    for name, given in (("clip_quantile", server.clip_quantile), ("clip_centre", server.clip_centre)):
        if given and server.clip_norm is None:
            raise JobRefused(
                f"job {spec.name}: server.{name} needs server.clip_norm, which holds in the first round; "
                f"set it to a length that honest changes have there"
            )
    if server.clip_centre and (server.normalised or server.aggregation != "mean"):
        other = "normalised" if server.normalised else f"aggregation {server.aggregation}"
        raise JobRefused(
            f"job {spec.name}: server.clip_centre is for a mean weighted by samples, not for {other}; "
            f"leave one of them out"
        )


def _check_aggregation(spec: JobSpec) -> None:
    rule = spec.server.aggregation
    if rule != "mean" and spec.compression.up != "float32":
        raise JobRefused(
            f"job {spec.name}: server.aggregation {rule} reads the updates again by blocks of coordinates, "
            f"which compression.up {spec.compression.up} does not allow; leave one of them out"
        )
    if rule != "mean" and spec.server.normalised:
        raise JobRefused(
            f"job {spec.name}: server.normalised weighs the changes of a mean, and server.aggregation "
            f"{rule} counts all alike; leave one of them out"
        )
    if spec.min_reports < spec.server.reports_min:
        given = {"multi_krum": f" with byzantine {spec.server.byzantine}"}
        given["trimmed_mean"] = f" with trim {spec.server.trim:g}"
        raise JobRefused(
            f"job {spec.name}: server.aggregation {rule}{given.get(rule, '')} needs at least "
            f"{spec.server.reports_min} updates in a round; min_reports is {spec.min_reports}: raise it"
        )
    if rule == "multi_krum" and spec.cohort * spec.over_selection > KRUM_MAX:
        raise JobRefused(
            f"job {spec.name}: server.aggregation multi_krum compares each update with each, of at most "
            f"{KRUM_MAX} devices in a round; lower cohort, or choose trimmed_mean"
        )


def _check_evaluation(job: str, settings: EvaluationSettings) -> None:
    if settings.dataset and not PurePosixPath(settings.dataset).is_absolute():
        raise JobRefused(
            f"job {job}: evaluation.dataset {settings.dataset!r} is a path at the coordinator: "
            f"give it from the root on"
        )
    if settings.by == "central" and not settings.dataset:
        raise JobRefused(
            f"job {job}: evaluation.by is central, and there is no evaluation.dataset: "
            f"name a data set at the coordinator"
        )
    if settings.target is not None and not math.isfinite(settings.target):
        raise JobRefused(f"job {job}: evaluation.target {settings.target} is no finite number; correct it")


def _check_asynchronous(spec: JobSpec) -> None:
    settings = spec.asynchronous
    if settings is None:
        return
    if spec.over_selection != 1.0:
        raise JobRefused(
            f"job {spec.name}: over_selection {spec.over_selection:g} means nothing in an asynchronous "
            f"job, where asynchronous.concurrency says how many devices train; leave it out"
        )
    if settings.concurrency > COHORT_MAX:
        raise JobRefused(
            f"job {spec.name}: asynchronous.concurrency {settings.concurrency} is more than "
            f"{COHORT_MAX} devices; lower it"
        )
    if spec.server.aggregation != "mean" and settings.per_device_max > 1:
        raise JobRefused(
            f"job {spec.name}: with asynchronous.per_device_max {settings.per_device_max} one device could "
            f"outvote others in server.aggregation {spec.server.aggregation}; set it to 1"
        )


def _check_pull(spec: JobSpec) -> None:
    pull = spec.local.mu * spec.local.learning_rate
    if pull >= 1:
        raise JobRefused(
            f"job {spec.name}: local.proximal {spec.local.mu:g} times local.learning_rate "
            f"{spec.local.learning_rate:g} is {pull:g}: steps would leap over the model that they are "
            f"to stay close to; it must be below 1, so lower one of them"
        )


def _check_scaffold(spec: JobSpec) -> None:
    """`JobRefused` for what SCAFFOLD's formulas do not hold with."""
    if not spec.scaffold:
        return
    odd = {
        f"local.momentum {spec.local.momentum:g}": spec.local.momentum,
        f"local.proximal {spec.local.mu:g}": spec.local.mu,
        f"server.optimiser {spec.server.optimiser}": spec.server.optimiser != "fedavg",
        "server.normalised": spec.server.normalised,
        "server.clip_centre": spec.server.clip_centre,
        f"server.aggregation {spec.server.aggregation}": spec.server.aggregation != "mean",
        f"compression.up {spec.compression.up}": spec.compression.up != "float32",
        "asynchronous": spec.asynchronous is not None,
    }
    for name in (name for name, set_ in odd.items() if set_):
        raise JobRefused(
            f"job {spec.name}: {name} does not go with [scaffold], whose control variates are the gradients "
            f"of plain SGD, averaged as they are; leave one of them out"
        )
    if spec.scaffold.devices < spec.cohort:
        raise JobRefused(
            f"job {spec.name}: scaffold.devices {spec.scaffold.devices} are fewer than cohort {spec.cohort}; "
            f"say how many devices there are in all"
        )
