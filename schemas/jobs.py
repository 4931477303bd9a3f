"""What an operator asks for: the specification of one training job. Impossible mixes are refused here."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from schemas.errors import JobRefused
from schemas.ids import checked_name
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN, CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, COHORT_MAX

Scalar = str | int | float | bool | None
TaskConfig = dict[str, Scalar | list[str | int | float]]

JOB_RUNNING: Final = "running"  # the state of a job that has not ended, as devices are told it

Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
ChunkBytes = Annotated[int, msgspec.Meta(ge=CHUNK_BYTES_CHOSEN_MIN, le=CHUNK_BYTES_MAX)]


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a device trains in one round: SGD on its own data.

    ``steps_max`` bounds the optimiser steps (0: no bound). ``seed`` fixes the order of the batches.
    """

    epochs: Positive = 1
    batch_size: Positive = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e4)] = 0.1
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1e4)] = 0.0
    steps_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0

    def steps(self, samples: int) -> int:
        """Optimiser steps that training on so many samples takes."""
        steps = self.epochs * -(-samples // self.batch_size)
        return min(steps, self.steps_max) if self.steps_max else steps


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a round's mean change moves the model (``coordinator.strategies`` has the formulas).

    Without ``learning_rate`` it is 1 for ``fedavg`` and ``fedavgm``, and 0.1 for the adaptive ones. A change
    longer than ``clip_norm`` is scaled down to it. ``normalised``: by local steps, as FedNova does.
    """

    optimiser: Literal["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e4)] | None = None
    beta_1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.99
    tau: Annotated[float, msgspec.Meta(gt=0, le=1e4)] = 1e-3
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    normalised: bool = False

    @property
    def rate(self) -> float:
        """The learning rate that holds."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.optimiser in ("fedavg", "fedavgm") else 0.1


class AsyncSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Buffered asynchronous aggregation (``coordinator.buffered`` has the rules, and
    ``coordinator.strategies.staleness`` the formulas).

    ``concurrency`` devices train at a time. An update's staleness is the number of versions made since the
    one that it was trained on; beyond ``staleness_max`` it is rejected. ``per_device_max`` updates of one
    device go into one version.
    """

    concurrency: Positive
    staleness_max: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 20
    weighting: Literal["constant", "polynomial", "hinge", "delay-adaptive"] = "polynomial"
    decay: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.5
    grace: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 4
    per_device_max: Positive = 1


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One job, whose updates are averaged with the weight of their samples; synchronous rounds, unless it is
    ``asynchronous``.

    ``cohort`` devices are wanted per round; ``over_selection`` times as many are asked. A round closes
    when ``cohort`` updates were folded, or everybody asked has answered, or after ``deadline_s`` with at
    least ``min_reports`` folded; with fewer it goes on and asks further devices. Models and large updates
    travel in chunks of ``chunk_bytes``.
    """

    name: str
    task: str
    dataset: str = ""  # which of the device's data sets; empty: the one named like the task
    config: TaskConfig = {}
    local: LocalSettings = LocalSettings()
    server: ServerSettings = ServerSettings()
    asynchronous: AsyncSettings | None = None
    rounds: Positive = 10
    cohort: Positive = 2
    min_reports: Positive = 1
    over_selection: Annotated[float, msgspec.Meta(ge=1, le=10)] = 1.0
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86_400)] = 600.0
    update_norm_max: Annotated[float, msgspec.Meta(gt=0)] = 1_000.0
    samples_max: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000
    chunk_bytes: ChunkBytes = CHUNK_BYTES_DEFAULT
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0

    def data_name(self) -> str:
        return self.dataset or self.task


TASK_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_job(document: object) -> JobSpec:
    """A job from a parsed TOML or JSON document. Raises `JobRefused` naming the field and the remedy."""
    try:
        spec = msgspec.convert(document, JobSpec)
    except msgspec.ValidationError as error:
        raise JobRefused(f"job specification: {error}; see docs/jobs.md for the fields") from error
    return checked_job(spec)


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
    clip = spec.server.clip_norm
    if clip is not None and clip > spec.update_norm_max:
        raise JobRefused(
            f"job {spec.name}: server.clip_norm {clip:g} exceeds update_norm_max "
            f"{spec.update_norm_max:g}: what is longer is rejected, so none would be clipped; lower it"
        )
    if spec.asynchronous is not None:
        if spec.over_selection != 1.0:
            raise JobRefused(
                f"job {spec.name}: over_selection {spec.over_selection:g} means nothing in an asynchronous "
                f"job, where asynchronous.concurrency says how many devices train; leave it out"
            )
        if spec.asynchronous.concurrency > COHORT_MAX:
            raise JobRefused(
                f"job {spec.name}: asynchronous.concurrency {spec.asynchronous.concurrency} is more than "
                f"{COHORT_MAX} devices; lower it"
            )
    if spec.min_reports > spec.cohort:
        raise JobRefused(
            f"job {spec.name}: min_reports {spec.min_reports} exceeds cohort {spec.cohort}: "
            f"a round could never close; lower min_reports or raise cohort"
        )
    return spec
