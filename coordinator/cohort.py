"""Which devices are asked. Pure: the same job, round and members give the same cohort."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from statistics import median
from typing import Final

from coordinator.state import Device, DeviceState, Job, State


def eligible(state: State, job: Job) -> list[str]:
    """Devices that may be asked for this job now, sorted: active, known to have the task, and not in
    quarantine."""
    return sorted(
        device.id
        for device in state.devices.values()
        if device.state is DeviceState.ACTIVE
        and device.status is not None
        and job.spec.task in device.status.tasks
        and device.id not in job.unfit
        and not job.quarantined(device.id)
    )


def select(
    job: Job,
    round_: int,
    attempt: int,
    candidates: list[str],
    wanted: int,
    devices: Mapping[str, Device] | None = None,
) -> list[str]:
    """``wanted`` times the over-selection out of ``candidates``, by the job's ``selection``, sorted.

    Selecting about 130% of the target follows Bonawitz et al. 2019 ("Towards federated learning at
    scale", section 2.2). ``devices`` are known to jobs whose selection is not uniform.
    """
    count = min(len(candidates), math.ceil(wanted * job.spec.over_selection))
    draw = random.Random(f"{job.id}:{job.spec.seed}:{round_}:{attempt}")  # a draw, not a secret
    if job.spec.selection == "uniform" or devices is None:
        return sorted(draw.sample(candidates, count))
    weights = _weights(job, [devices[name] for name in candidates])
    # Efraimidis and Spirakis 2006 ("Weighted random sampling with a reservoir", A-Res): the largest u^(1/w).
    # Logarithms may differ in a last bit between machines; who was drawn is recorded, and never drawn again.
    keys = {name: math.log(1.0 - draw.random()) / weights[name] for name in candidates}
    return sorted(sorted(candidates, key=lambda name: keys[name], reverse=True)[:count])


def _weights(job: Job, devices: list[Device]) -> dict[str, float]:
    """How much likelier each is to be drawn. One of which nothing is known counts as the usual one does."""
    measured = SELECTIONS[job.spec.selection](job, devices)
    known = [weight for weight in measured.values() if weight > 0]
    usual = median(known) if known else 1.0
    # Within bounds, so that nobody is drawn always, or never, because of what it says of itself.
    low, high = usual / WEIGHT_SPREAD, usual * WEIGHT_SPREAD
    return {name: min(max(weight or usual, low), high) for name, weight in measured.items()}


def _by_samples(job: Job, devices: list[Device]) -> dict[str, float]:
    """Those that the device said it holds of the job's data; 0 before it has trained on them once."""
    data = job.spec.data_name()
    return {one.id: float(one.status.samples.get(data, 0)) if one.status else 0.0 for one in devices}


def _by_capability(job: Job, devices: list[Device]) -> dict[str, float]:
    """Samples that it trained per second, last time in this job; before anybody has, its cores."""
    speeds = dict.fromkeys((one.id for one in devices), 0.0)
    for (name, _), request in job.requests.items():  # of each device, in the order of issue
        if name in speeds and request.samples and request.train_s > 0:
            speeds[name] = request.samples / request.train_s
    if any(speeds.values()):
        return speeds
    return {one.id: float(one.status.cores) if one.status else 0.0 for one in devices}


WEIGHT_SPREAD: Final = 100.0
"""No device counts more than so many times, or less than such a part of, what the usual one does."""
SELECTIONS: Final[dict[str, Callable[[Job, list[Device]], dict[str, float]]]] = {
    "samples": _by_samples,
    "capability": _by_capability,
}
