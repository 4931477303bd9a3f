"""What an operator asks for: the specification of one training job. Impossible mixes are refused here."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import force_setattr, replace

from schemas.errors import JobRefused
from schemas.ids import checked_name
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN, CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, COHORT_MAX
from schemas.schedules import Schedule

Scalar = str | int | float | bool | None
TaskConfig = dict[str, Scalar | list[str | int | float]]

JOB_RUNNING: Final = "running"  # the state of a job that has not ended, as devices are told it

BUILT_IN: Final = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
STRATEGIES: Final = "fedbus.strategies"  # entry points of other packages' server optimisers

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

    ``optimiser`` is one of `optimisers`. Without ``learning_rate`` it is 1 for ``fedavg`` and ``fedavgm``,
    and 0.1 for the others. A change longer than ``clip_norm`` is scaled down to it. ``normalised``: by local
    steps, as FedNova does.
    """

    optimiser: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "fedavg"
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e4)] | None = None
    beta_1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.99
    tau: Annotated[float, msgspec.Meta(gt=0, le=1e4)] = 1e-3
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    normalised: bool = False
    schedule: Schedule | UnsetType = UNSET

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


class Scaffold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SCAFFOLD: devices correct each step by control variates (``coordinator.strategies.scaffold``).

    ``devices`` is N, how many there are in all.
    """

    devices: Positive


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One job: synchronous rounds, whose updates are averaged with the weight of their samples.

    ``cohort`` devices are wanted per round; ``over_selection`` times as many are asked. A round closes
    when ``cohort`` updates were folded, or everybody asked has answered, or after ``deadline_s`` with at
    least ``min_reports`` folded; with fewer it goes on and asks further devices. Models and large updates
    travel in chunks of ``chunk_bytes``.
    """

    name: str
    task: str
    dataset: str = ""  # which of the device's data sets; empty: the one named like the task
    config: TaskConfig = {}
    local: LocalPlan = LocalPlan()
    server: ServerSettings = ServerSettings()
    personal: Personal | UnsetType = UNSET
    scaffold: Scaffold | UnsetType = UNSET
    rounds: Positive = 10
    cohort: Positive = 2
    min_reports: Positive = 1
    over_selection: Annotated[float, msgspec.Meta(ge=1, le=10)] = 1.0
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86_400)] = 600.0
    update_norm_max: Annotated[float, msgspec.Meta(gt=0)] = 1_000.0
    samples_max: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000
    chunk_bytes: ChunkBytes = CHUNK_BYTES_DEFAULT
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0

    @property
    def population(self) -> int:
        """How many devices there are in all, where that matters; otherwise 0."""
        return self.scaffold.devices if self.scaffold else 0

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
    pull = spec.local.mu * spec.local.learning_rate
    if pull >= 1:
        raise JobRefused(
            f"job {spec.name}: local.proximal {spec.local.mu:g} times local.learning_rate "
            f"{spec.local.learning_rate:g} is {pull:g}: steps would leap over the model that they are "
            f"to stay close to; it must be below 1, so lower one of them"
        )
    _check_scaffold(spec)
    if spec.min_reports > spec.cohort:
        raise JobRefused(
            f"job {spec.name}: min_reports {spec.min_reports} exceeds cohort {spec.cohort}: "
            f"a round could never close; lower min_reports or raise cohort"
        )
    return spec


def _check_scaffold(spec: JobSpec) -> None:
    """`JobRefused` for what SCAFFOLD's formulas do not hold with."""
    if not spec.scaffold:
        return
    odd = {
        f"local.momentum {spec.local.momentum:g}": spec.local.momentum,
        f"local.proximal {spec.local.mu:g}": spec.local.mu,
        f"server.optimiser {spec.server.optimiser}": spec.server.optimiser != "fedavg",
        "server.normalised": spec.server.normalised,
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
