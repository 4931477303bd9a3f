"""The recorded updates folded under other settings, and what each device's update did to a round.

What if: the recorded updates of each round, weighed, clipped and chosen by other settings, are folded into
*the recorded version before it*, from which their devices trained: exactly what would have come of that
round. What would have come of the next one cannot be told: its devices would have trained from another
model. Carrying on with their recorded updates is no estimate of it: they hold what mends the harm of the
rounds before, and take a model without that harm far away. ``drift`` tells how far: the sum of what the
rounds would have changed. Who was asked, and when, is the recording's, too.

A server optimiser goes on from what it had kept before that round; another than the job's, from what it would
have kept itself.

Blame: for each update of a round, the version without it. The mean of the others follows from the mean Δ of
all, the change δ, and their weights, (N·Δ - n·δ) / (N - n), and so on as the job weighs them; each update is
read twice. Devices are
ranked by the cosine of δ with that mean, the one that pulled against the others most first. A device with
rare data may pull against the others as well: its place is a reason to look, not a proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as replace_field
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from coordinator.fold import Folder
from coordinator.recorded import base_of, model_of, moments_before, open_again
from coordinator.recording import Commit, NothingToReplay, Recording
from coordinator.state import Request, RequestState
from coordinator.strategies import (
    Moments,
    Weight,
    aggregation,
    begun,
    radius_after,
    server_optimiser,
    weigh,
)
from coordinator.vectors import cosine, norm, step
from schemas.errors import JobRefused
from schemas.jobs import AsyncSettings, JobSpec, ServerSettings

Row = dict[str, Any]

BOUNDS: Final = ("norm", "samples", "steps")  # verdicts that other settings may turn


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How recorded updates are folded. Without ``server``, ``asynchronous``, ``update_norm_max`` and
    ``samples_max`` the job's own hold.

    ``clip_norm`` scales a longer update down to that L2 norm. ``leave_out`` names devices.
    """

    weights: Literal["samples", "equal"] = "samples"
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    leave_out: list[str] = []
    update_norm_max: Annotated[float, msgspec.Meta(gt=0)] | None = None
    samples_max: Annotated[int, msgspec.Meta(ge=1)] | None = None
    server: ServerSettings | None = None
    asynchronous: AsyncSettings | None = None

    def takes(self, request: Request, spec: JobSpec) -> bool:
        """Whether a recorded update is folded."""
        turned = request.state is RequestState.REJECTED and request.reason.partition(":")[0] in BOUNDS
        return (
            (turned or request.state is RequestState.FOLDED)
            and request.device not in self.leave_out
            and request.norm <= (self.update_norm_max or spec.update_norm_max)
            and request.samples <= (self.samples_max or spec.samples_max)
            and (not self.rule(spec).normalised or 1 <= request.steps <= spec.local.steps(request.samples))
        )

    def rule(self, spec: JobSpec) -> ServerSettings:
        """How the round's mean is made and moves the model."""
        server = self.server or spec.server
        return server if self.clip_norm is None else replace(server, clip_norm=self.clip_norm)

    def rules(self, spec: JobSpec) -> JobSpec:
        """The job as its updates are weighed."""
        asynchronous = self.asynchronous or spec.asynchronous
        return replace(spec, server=self.rule(spec), asynchronous=asynchronous)

    def weigh(self, request: Request, spec: JobSpec, radius: float) -> Weight:
        """What an update counts."""
        weight = weigh(request, self.rules(spec), radius)
        return weight if self.weights == "samples" else replace_field(weight, samples=1)


def parse_settings(document: dict[str, Any], spec: JobSpec) -> Settings:
    """Settings from a TOML document: those of folding, and fields of the job as it was recorded.

    Raises `JobRefused` for a field of the job that differs and on which folding does not depend.
    """
    names = set(Settings.__struct_fields__)
    recorded = msgspec.to_builtins(spec)
    for name, value in document.items():
        if name in names:
            continue
        if name not in recorded:
            raise JobRefused(f"what if: unknown field {name}; there are {', '.join(sorted(names))}")
        told = recorded[name] | value if isinstance(value, dict) and name == "local" else value
        if told != recorded[name]:
            raise JobRefused(
                f"what if: {name} = {value!r} is not what job {spec.name} ran with ({recorded[name]!r}), "
                f"and a recording can't tell what would have come of it; leave it out, or run the job anew"
            )
    try:
        return msgspec.convert({name: document[name] for name in names & document.keys()}, Settings)
    except msgspec.ValidationError as error:
        raise JobRefused(f"what if: {error}; see docs/replay.md for the fields") from error


@dataclass(frozen=True, slots=True)
class Parted:
    """One version, as recorded and as it would be; ``row`` is what is told of it."""

    row: Row
    recorded: bytes
    other: bytes


def what_if(recording: Recording, job: str, settings: Settings, until: int = 0) -> Iterator[Parted]:
    """Each version of a job beside what its round would have made under other settings (see the module).

    Begins with the first version whose updates are all there. Raises `NothingToReplay` when an update cannot
    be read, or a name in ``leave_out`` is no device's.
    """
    drift: NDArray[np.float64] | None = None
    radius, layout = 0.0, None
    moments: Moments | None = None
    for commit in recording.commits(job):
        if until and commit.fact.version > until:
            break
        if not commit.complete:
            continue
        layout = layout or recording.store.layout(job)
        recorded = model_of(recording, job, commit.fact.model)
        base = recorded if commit.fact.round == 0 else model_of(recording, job, base_of(commit))
        optimiser = server_optimiser(settings.rule(commit.job.spec), commit.fact.version)
        if settings.server is None or settings.server == commit.job.spec.server:
            moments = moments_before(recording, commit, optimiser)
        elif moments is None:
            moments = begun(optimiser, layout.trained_count)
        folder = Folder(layout)
        received = [recording.with_steps(job, each) for each in commit.received]
        chosen = [each for each in received if settings.takes(each, commit.job.spec)]
        folder.centre = moments[-1] if settings.rule(commit.job.spec).clip_centre else None
        radius = _fold(recording, folder, commit, chosen, settings, radius)
        other, population = base, commit.job.spec.population
        if folder.samples:
            other = bytes(folder.finish(base, optimiser, moments, population))
        if folder.samples and folder.overflowed:
            raise NothingToReplay(
                f"under these settings round {commit.fact.round} of job {job} takes the model beyond the "
                f"numbers of float32; lower learning_rate in [server]"
            )
        left = sorted({each.device for each in commit.folded} - {each.device for each in chosen})
        row = {
            "version": commit.fact.version,
            "round": commit.fact.round,
            "updates": folder.folded,
            "recorded_updates": len(commit.folded),
            "left_out": left,
        }
        was, now = (step(base, model, layout.trained_count) for model in (recorded, other))
        drift = now - was if drift is None else drift + (now - was)
        yield Parted(row | _parted(was, now) | {"drift": norm(drift)}, recorded, other)
    if drift is None:
        raise NothingToReplay(f"{recording.directory} records no version of job {job} that can be made again")
    unknown = sorted(set(settings.leave_out) - recording.state.devices.keys())
    if unknown:
        raise NothingToReplay(f"leave_out: {recording.directory} knows no device {', '.join(unknown)}")


def _fold(
    recording: Recording,
    folder: Folder,
    commit: Commit,
    chosen: list[Request],
    settings: Settings,
    radius: float,
) -> float:
    """What clips in the next round."""
    spec, server = commit.job.spec, settings.rule(commit.job.spec)
    if server == spec.server and commit.job.round:
        radius = commit.job.round.radius
    if 0 < len(chosen) < server.reports_min:
        raise NothingToReplay(
            f"round {commit.fact.round} of job {commit.job.id} has {len(chosen)} updates under these "
            f"settings, and aggregation {server.aggregation} needs {server.reports_min}: lower trim or "
            f"byzantine in [server], or choose another rule"
        )
    rule, weighed = aggregation(server), []
    for request in chosen:
        open_again(recording, folder, commit, request)
        measured = replace_field(request, distance=folder.distance())
        weighed.append((measured, settings.weigh(measured, spec, radius)))
        (folder.count if rule else folder.add)(weighed[-1][1])
    if rule and weighed:
        folder.aggregate(rule, recording.again(commit.job, weighed))
    return radius_after([request for request, _ in weighed], settings.rules(spec), radius)


def _parted(was: NDArray[np.float64], now: NDArray[np.float64]) -> Row:
    """How far: ``relative`` is to the length of the recorded step; the cosine is of the two steps."""
    length, distance = norm(was), norm(now - was)
    relative = distance / length if length else 0.0
    return {"distance": distance, "step": length, "relative": relative, "cosine": cosine(was, now)}


@dataclass(frozen=True, slots=True)
class Blamed:
    """A round's update, and the version without it; ``row`` is what is told of it."""

    row: Row
    without: bytes


def blame(recording: Recording, job: str, round_: int) -> tuple[bytes, list[Blamed]]:
    """The version that a round made, and for each update in it the version without it (see the module),
    the one that pulled against the others most first. Memory: one model for each update.

    Raises `NothingToReplay`.
    """
    for commit in recording.commits(job):
        if round_ and commit.fact.round == round_:
            break
    else:
        raise NothingToReplay(f"{recording.directory} records no version of job {job} made by round {round_}")
    base = model_of(recording, job, base_of(commit))
    recorded = model_of(recording, job, commit.fact.model)
    layout = recording.store.layout(job)
    moved = step(base, recorded, layout.trained_count)
    folder = Folder(layout)
    optimiser = server_optimiser(commit.job.spec.server, commit.fact.version)
    if (rule := commit.job.spec.server.aggregation) != "mean":
        raise NothingToReplay(
            f"job {job} makes its rounds by {rule}, and a version without one update follows only from a "
            f"mean: try `replay --what-if` with leave_out"
        )
    if len(commit.folded) < 2:
        raise NothingToReplay(
            f"round {round_} of job {job} folded one update: there is nobody to compare it with"
        )
    for request in commit.folded:
        open_again(recording, folder, commit, request)
        folder.add(commit.weight(request))
    total, samples, efforts, drawn = folder.total(), folder.samples, folder.efforts, folder.drawn
    kept = moments_before(recording, commit, optimiser).astype(np.float64)
    found = []
    for request in commit.folded:
        open_again(recording, folder, commit, request)
        change, weight = folder.opened.astype(np.float64), commit.weight(request)
        others = (total - weight.of_change * change) / (samples - weight.samples)
        others *= (efforts - weight.samples * weight.effort) / (samples - weight.samples)
        if commit.job.spec.server.clip_centre:
            others += kept[-1] * ((drawn - weight.of_centre) / (samples - weight.samples))
        stepped = others.copy()
        optimiser.step(stepped, kept.copy())
        without = bytearray(base)
        trained = np.frombuffer(without, dtype="<f4", count=layout.trained_count)
        np.copyto(trained, trained + stepped, casting="same_kind")
        row = {
            "device": request.device,
            "samples": weight.samples,
            "share": weight.samples / samples,
            "norm": request.norm,
            "cosine": cosine(change, others),
            "change": norm(stepped - moved),
            "relative": norm(stepped - moved) / (norm(moved) or 1.0),
        }
        found.append(Blamed(row, bytes(without)))
    return recorded, sorted(found, key=lambda each: each.row["cosine"] or 0.0)
