"""Which devices are asked. Pure: the same job, round and members give the same cohort."""

from __future__ import annotations

import math
import random

from coordinator.state import DeviceState, Job, State


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


def select(job: Job, round_: int, attempt: int, candidates: list[str], wanted: int) -> list[str]:
    """``wanted`` times the over-selection out of ``candidates``, uniformly, sorted.

    Selecting about 130% of the target follows Bonawitz et al. 2019 ("Towards federated learning at
    scale", section 2.2).
    """
    count = min(len(candidates), math.ceil(wanted * job.spec.over_selection))
    draw = random.Random(f"{job.id}:{job.spec.seed}:{round_}:{attempt}")  # a draw, not a secret
    return sorted(draw.sample(candidates, count))
