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

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from coordinator.fold import BLOCK, Folder
from coordinator.recording import Commit, NothingToReplay, Recording
from coordinator.state import Request, RequestState
from coordinator.store import Altered
from coordinator.strategies import Moments, ServerOptimiser, Weight, begun, server_optimiser, weigh
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

    def weigh(self, request: Request, spec: JobSpec) -> Weight:
        """What an update counts."""
        rules = replace(spec, server=self.rule(spec), asynchronous=self.asynchronous or spec.asynchronous)
        weight = weigh(request, rules)
        return weight if self.weights == "samples" else Weight(1, weight.scale, weight.effort)


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
    layout, skipped = None, job not in recording.incomplete
    moments: Moments | None = None
    for commit in recording.commits(job):
        if until and commit.fact.version > until:
            break
        if not skipped:
            skipped = True
            continue
        layout = layout or recording.store.layout(job)
        recorded = _model(recording, job, commit.fact.model)
        base = recorded if commit.fact.round == 0 else _model(recording, job, _base(commit))
        optimiser = server_optimiser(settings.rule(commit.job.spec))
        if settings.server is None or settings.server == commit.job.spec.server:
            moments = _moments(recording, commit, optimiser)
        elif moments is None:
            moments = begun(optimiser, layout.trained_count)
        folder = Folder(layout)
        received = [recording.with_steps(job, each) for each in commit.received]
        chosen = [each for each in received if settings.takes(each, commit.job.spec)]
        for request in chosen:
            _open(recording, folder, commit, request)
            folder.add(settings.weigh(request, commit.job.spec))
        other = bytes(folder.finish(base, optimiser, moments)) if folder.samples else base
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
        was, now = (_step(base, model, layout.trained_count) for model in (recorded, other))
        drift = now - was if drift is None else drift + (now - was)
        yield Parted(row | _parted(was, now) | {"drift": _norm(drift)}, recorded, other)
    if drift is None:
        raise NothingToReplay(f"{recording.directory} records no version of job {job} that can be made again")
    unknown = sorted(set(settings.leave_out) - recording.state.devices.keys())
    if unknown:
        raise NothingToReplay(f"leave_out: {recording.directory} knows no device {', '.join(unknown)}")


def _parted(was: NDArray[np.float64], now: NDArray[np.float64]) -> Row:
    """How far: ``relative`` is to the length of the recorded step; the cosine is of the two steps."""
    step, distance = _norm(was), _norm(now - was)
    relative = distance / step if step else 0.0
    return {"distance": distance, "step": step, "relative": relative, "cosine": _cosine(was, now)}


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
    base = _model(recording, job, _base(commit))
    recorded = _model(recording, job, commit.fact.model)
    layout = recording.store.layout(job)
    step = _step(base, recorded, layout.trained_count)
    folder = Folder(layout)
    optimiser = server_optimiser(commit.job.spec.server)
    if len(commit.folded) < 2:
        raise NothingToReplay(
            f"round {round_} of job {job} folded one update: there is nobody to compare it with"
        )
    for request in commit.folded:
        _open(recording, folder, commit, request)
        folder.add(weigh(request, commit.job.spec))
    total, samples, efforts, found = folder.total(), folder.samples, folder.efforts, []
    for request in commit.folded:
        _open(recording, folder, commit, request)
        change, weight = folder.opened.astype(np.float64), weigh(request, commit.job.spec)
        others = (total - weight.of_change * change) / (samples - weight.samples)
        others *= (efforts - weight.samples * weight.effort) / (samples - weight.samples)
        stepped = others.copy()
        optimiser.step(stepped, _moments(recording, commit, optimiser).astype(np.float64))
        without = bytearray(base)
        trained = np.frombuffer(without, dtype="<f4", count=layout.trained_count)
        np.copyto(trained, trained + stepped, casting="same_kind")
        row = {
            "device": request.device,
            "samples": weight.samples,
            "share": weight.samples / samples,
            "norm": request.norm,
            "cosine": _cosine(change, others),
            "change": _norm(stepped - step),
            "relative": _norm(stepped - step) / (_norm(step) or 1.0),
        }
        found.append(Blamed(row, bytes(without)))
    return recorded, sorted(found, key=lambda each: each.row["cosine"] or 0.0)


def _model(recording: Recording, job: str, digest: bytes) -> bytes:
    try:
        return recording.store.model(job, digest)
    except Altered as error:
        raise NothingToReplay(str(error)) from error
    except OSError as error:
        raise NothingToReplay(f"{error}; restore {recording.directory} from a backup") from error


def _moments(recording: Recording, commit: Commit, optimiser: ServerOptimiser) -> Moments:
    """What the job's optimiser had kept before a recorded version."""
    moments = begun(optimiser, recording.store.layout(commit.job.id).trained_count)
    try:
        for version in commit.job.versions[-1:]:
            recording.store.read_moments(commit.job.id, version.number, version.moments, moments)
    except Altered as error:
        raise NothingToReplay(str(error)) from error
    except OSError as error:
        raise NothingToReplay(f"{error}; restore {recording.directory} from a backup") from error
    return moments


def _base(commit: Commit) -> bytes:
    if commit.job.round is None:
        raise NothingToReplay(f"version {commit.fact.version} of job {commit.job.id} was made by no round")
    return commit.job.round.base


def _open(recording: Recording, folder: Folder, commit: Commit, request: Request) -> None:
    problem = recording.open(folder, commit.job, request)
    if recording.wrong:
        problem = f"log entry {recording.wrong.entry} is wrong ({recording.wrong.what})"
    if problem:
        raise NothingToReplay(
            f"device {request.device}, request {request.number} of job {commit.job.id}: {problem}; "
            f"`fedbus-coordinator replay {recording.directory}` tells what is whole"
        )


def _step(base: bytes, model: bytes, count: int) -> NDArray[np.float64]:
    """From one model to the other, over the trained coordinates."""
    first, second = (np.frombuffer(data, dtype="<f4", count=count) for data in (base, model))
    step: NDArray[np.float64] = second.astype(np.float64) - first
    return step


def _inner(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Block by block: `np.dot` would give other bits on other processors."""
    return math.fsum(float(np.sum(a[at : at + BLOCK] * b[at : at + BLOCK])) for at in range(0, len(a), BLOCK))


def _norm(a: NDArray[np.float64]) -> float:
    return math.sqrt(_inner(a, a))


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """None where one of them is nothing."""
    sizes = _norm(a) * _norm(b)
    return _inner(a, b) / sizes if sizes else None
