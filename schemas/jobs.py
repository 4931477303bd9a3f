"""What an operator asks for: the specification of one training job; ``job_checks`` refuses bad mixes."""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import force_setattr, replace

from schemas.encodings import Encoding, EncodingName
from schemas.errors import JobRefused
from schemas.job_checks import checked_job
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN, CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, COHORT_MAX
from schemas.schedules import Schedule

Scalar = str | int | float | bool | None
TaskConfig = dict[str, Scalar | list[str | int | float]]

FEDERATED: Final = "federated"  # who evaluated: the devices, on their held-out data
CENTRAL: Final = "central"  # the coordinator
JOB_RUNNING: Final = "running"  # the state of a job that has not ended, as devices are told it

TRIM_SLACK: Final = 1e-9  # so that 0.1 of 30 are 3, whatever their product is rounded to


Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
ChunkBytes = Annotated[int, msgspec.Meta(ge=CHUNK_BYTES_CHOSEN_MIN, le=CHUNK_BYTES_MAX)]


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a device trains in one round: SGD on its own data.

    ``steps_max`` bounds the optimiser steps (0: no bound). ``seed`` fixes the order of the batches.
    ``proximal`` is μ of FedProx (Li et al. 2020, "Federated optimization in heterogeneous networks",
    equation 2): each gradient has μ·(w - w₀) added, w₀ the model that came. It is left out where it is 0:
    releases that do not know it refuse it.
    """

    epochs: Positive = 1
    batch_size: Positive = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e4)] = 0.1
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1e4)] = 0.0
    steps_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    proximal: Annotated[float, msgspec.Meta(ge=0, le=1e4)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.proximal == 0:
            force_setattr(self, "proximal", UNSET)

    @property
    def mu(self) -> float:
        """``proximal``, 0 where it is not set."""
        return self.proximal or 0.0

    def rate(self, round_: int) -> float:
        """The learning rate in round ``round_``, counted from 1."""
        return self.learning_rate

    def steps(self, samples: int) -> int:
        """Optimiser steps that training on so many samples takes."""
        steps = self.epochs * -(-samples // self.batch_size)
        return min(steps, self.steps_max) if self.steps_max else steps


class LocalPlan(LocalSettings, frozen=True, kw_only=True):
    """What a job says about local training: the settings, and how they change. Stays at the coordinator."""

    schedule: Schedule | UnsetType = UNSET

    def rate(self, round_: int) -> float:
        """The learning rate in round ``round_``, counted from 1."""
        return self.learning_rate * (self.schedule.of_round(round_) if self.schedule else 1.0)

    def in_round(self, round_: int, seed: int) -> LocalSettings:
        """What a device is told to do in a round; ``seed`` is of its batches."""
        told = {name: getattr(self, name) for name in LocalSettings.__struct_fields__}
        return LocalSettings(**told | {"learning_rate": self.rate(round_), "seed": seed})


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a round's mean change moves the model (``coordinator.strategies`` has the formulas).

    ``optimiser`` is one of `job_checks.optimisers`. Without ``learning_rate`` it is 1 for ``fedavg`` and
    ``fedavgm``, and 0.1 for the others. A change longer than ``clip_norm`` is scaled down to it; with
    ``clip_quantile``, after the first round, one longer than so many of the last round's were; with
    ``clip_centre`` lengths count from the last round's Δ, not from no change. ``normalised``: by local
    steps, as FedNova does. ``aggregation`` names what stands for the mean; of n changes ``trim`` · n are left
    out at each end of a coordinate, or ``byzantine`` of them are taken for an attacker's.
    """

    optimiser: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "fedavg"
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e4)] | None = None
    beta_1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.99
    tau: Annotated[float, msgspec.Meta(gt=0, le=1e4)] = 1e-3
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    clip_quantile: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    clip_centre: bool = False
    normalised: bool = False
    schedule: Schedule | UnsetType = UNSET
    aggregation: Literal["mean", "median", "trimmed_mean", "multi_krum"] = "mean"
    trim: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.2
    byzantine: Annotated[int, msgspec.Meta(ge=1, le=COHORT_MAX)] = 1

    def of_version(self, version: int) -> ServerSettings:
        """As they hold for the round that makes ``version``: with its learning rate."""
        if not self.schedule:
            return self
        return replace(self, learning_rate=self.rate * self.schedule.of_round(version), schedule=UNSET)

    @property
    def rate(self) -> float:
        """The learning rate that holds, in the first round."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.optimiser in ("fedavg", "fedavgm") else 0.1

    @property
    def reports_min(self) -> int:
        """Updates that a round needs so that ``aggregation`` can outvote anybody."""
        match self.aggregation:
            case "median":
                return 3
            case "trimmed_mean":
                return trimmed_min(self.trim)
            case "multi_krum":
                return 2 * self.byzantine + 3
        return 1


def trimmed(trim: float, count: int) -> int:
    """How many of ``count`` a trimmed mean leaves out at each end."""
    return math.floor(trim * count + TRIM_SLACK)


def trimmed_min(trim: float) -> int:
    """The fewest of which one is left out at each end."""
    return math.ceil((1 - TRIM_SLACK) / trim) if trim else 1


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
    per_device_max: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1


class EvaluationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How good a job's versions are, and what follows from that (``coordinator.evaluation``).

    Devices tell what a version scores on their held-out data ("federated"). With a ``dataset``, a path at
    the coordinator, each ``every``-th version and the last are evaluated there, too ("central"). ``by`` says
    which of the two decides about the best version, ``patience`` and ``target``; ``metric`` is what counts.
    """

    metric: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "accuracy"
    mode: Literal["max", "min"] | None = None
    by: Literal["federated", "central"] | None = None
    dataset: str = ""
    every: Positive = 1
    patience: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    min_delta: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    target: float | None = None
    alarm_rises: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 5
    alarm_factor: Annotated[float, msgspec.Meta(gt=1, le=1e9)] = 3.0
    stop_on_divergence: bool = False

    @property
    def source(self) -> str:
        """Whose word counts."""
        return self.by or (CENTRAL if self.dataset else FEDERATED)

    @property
    def least_is_best(self) -> bool:
        """Whether the metric is better the smaller it is."""
        return lower_is_better(self.metric) if self.mode is None else self.mode == "min"

    @property
    def watched(self) -> str:
        """The metric that must not grow."""
        return self.metric if self.least_is_best else "loss"


def lower_is_better(metric: str) -> bool:
    """What the name of a metric says."""
    return "loss" in metric or "error" in metric


class Personal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of the model is each device's own: trained there, kept there, never sent.

    ``layers`` are patterns over names of tensors, as of a shell (FedPer: Arivazhagan et al. 2019, "Federated
    learning with personalization layers"). ``batch_norm``: all of batch normalisation (FedBN: Li et al. 2021,
    "FedBN: federated learning on non-IID features via local batch normalization").
    """

    layers: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=256)]], msgspec.Meta(max_length=256)
    ] = []
    batch_norm: bool = False


class CompressionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How updates travel ``up`` from devices that can encode so; the others send float32. ``fraction`` is the
    part of the coordinates that ``topk`` sends, and means nothing to the other encodings."""

    up: EncodingName = "float32"
    fraction: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.01

    def encoding(self, count: int) -> Encoding:
        """That of an update of ``count`` coordinates."""
        return Encoding(self.up, max(math.ceil(self.fraction * count), 1) if self.up == "topk" else 0)


class Scaffold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SCAFFOLD: devices correct each step by control variates (``coordinator.strategies.scaffold``).

    ``devices`` is N, how many there are in all.
    """

    devices: Positive


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One job, whose updates are averaged with the weight of their samples; synchronous rounds, unless it is
    ``asynchronous``.

    ``cohort`` devices are wanted per round; ``over_selection`` times as many are asked. A round closes
    when ``cohort`` updates were folded, or everybody asked has answered, or after ``deadline_s`` with at
    least ``min_reports`` folded; with fewer it goes on and asks further devices. Models and large updates
    travel in chunks of ``chunk_bytes``. A device of which ``quarantine_after`` updates in a row (0: however
    many) were rejected for what they held is not asked in the next ``quarantine_rounds``.
    """

    name: str
    task: str
    dataset: str = ""  # which of the device's data sets; empty: the one named like the task
    config: TaskConfig = {}
    local: LocalPlan = LocalPlan()
    server: ServerSettings = ServerSettings()
    asynchronous: AsyncSettings | None = None
    evaluation: EvaluationSettings | None = None
    personal: Personal | UnsetType = UNSET
    compression: CompressionSettings = CompressionSettings()
    scaffold: Scaffold | UnsetType = UNSET
    rounds: Positive = 10
    cohort: Positive = 2
    min_reports: Positive = 1
    over_selection: Annotated[float, msgspec.Meta(ge=1, le=10)] = 1.0
    selection: Literal["uniform", "samples", "capability"] = "uniform"
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86_400)] = 600.0
    update_norm_max: Annotated[float, msgspec.Meta(gt=0)] = 1_000.0
    samples_max: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000
    quarantine_after: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    quarantine_rounds: Positive = 10
    chunk_bytes: ChunkBytes = CHUNK_BYTES_DEFAULT
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0

    @property
    def population(self) -> int:
        """How many devices there are in all, where that matters; otherwise 0."""
        return self.scaffold.devices if self.scaffold else 0

    def data_name(self) -> str:
        return self.dataset or self.task


def parse_job(document: object) -> JobSpec:
    """A job from a parsed TOML or JSON document. Raises `JobRefused` naming the field and the remedy."""
    try:
        spec = msgspec.convert(document, JobSpec)
    except msgspec.ValidationError as error:
        raise JobRefused(f"job specification: {error}; see docs/jobs.md for the fields") from error
    return checked_job(spec)
