"""``jobs show`` in words: the rounds as a table, and below it whatever keeps a round from closing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import msgspec

from coordinator.cli.output import print_lines, print_table, printable
from schemas.jobs import JobSpec, ServerSettings

View = dict[str, Any]

TROUBLES_SHOWN: Final = 10
METRICS_SHOWN: Final = 8
ALARMS_SHOWN: Final = 5
SPREAD: Final = {"mean": "mean", "low": "10%", "median": "50%", "high": "90%", "worst": "worst tenth"}
LEANING_SHOWN: Final = 5
OPEN: Final = ("issued", "accepted", "received")
COLUMNS: Final = ("round", "reports", "samples", "accuracy before", "seconds", "overhead s", "model")
BUFFERED: Final = tuple("staleness" if name == "overhead s" else name for name in COLUMNS)


def print_job(view: View, spec: JobSpec | None, directory: Path) -> None:
    """For people. ``view`` is `coordinator.views.job` with ``history``, ``central`` and ``troubles``."""
    print_lines(f"job {view['job']}: {view['state']}" + (f" ({view['reason']})" if view["reason"] else ""))
    if spec is not None and spec.server != ServerSettings():
        print_lines(_server(spec.server, view["history"]))
    if view["history"]:
        buffered = spec is not None and spec.asynchronous is not None
        rows = [_row(round_, buffered=buffered) for round_ in view["history"]]
        print_table("", BUFFERED if buffered else COLUMNS, rows)
    for line in evaluated(view):
        print_lines(printable(line))  # devices name their metrics
    for line in _leaning(view["history"]):
        print_lines(line)
    for device, until in view["quarantine"].items():
        print_lines(
            f"{device}: in quarantine up to round {until}, its updates were rejected again and again; "
            f"`fedbus-coordinator devices release {device} --dir {directory}` ends that"
        )
    for line in (*_told(view["troubles"], view["job"], directory), *waiting(view, spec, directory)):
        print_lines(line)


def _server(settings: ServerSettings, history: list[View]) -> str:
    """What is not as it is without the table, and how often it clipped."""
    told = {"optimiser": settings.optimiser, "learning_rate": f"{settings.rate:g}"}
    told |= {
        name: msgspec.json.encode(value).decode()
        for name, value in msgspec.structs.asdict(settings).items()
        if name not in told and value != getattr(ServerSettings(), name)
    }
    line = "server: " + ", ".join(f"{name} {value}" for name, value in told.items())
    if settings.clip_norm is None:
        return line
    norms = [norm for round_ in history for norm in round_["norms"].values()]
    longer = sum(norm > settings.clip_norm for norm in norms)
    return f"{line} ({longer} of {len(norms)} changes were longer)"


def evaluated(view: View) -> Iterator[str]:
    """How good the versions are, as far as it is known."""
    if view["history"]:
        newest = view["history"][-1]
        for name, spread in list(newest["evaluation"].items())[:METRICS_SHOWN]:
            told = ", ".join(f"{word} {spread[key]:.4g}" for key, word in SPREAD.items())
            yield f"version {newest['version'] - 1} on {spread['devices']} devices: {name} {told}"
    scored = [one for one in view["central"] if not one["problem"]]
    if scored:
        told = ", ".join(f"{name} {value:.4g}" for name, value in scored[-1]["metrics"].items())
        yield f"version {scored[-1]['version']} at the coordinator: {told}"
    asked = view["evaluation"]
    if asked is None:
        return
    if best := asked["best"]:
        yield f"best: version {best['version']}, {asked['metric']} {best['score']:.6g} ({asked['by']})"
    if asked["waiting"] is not None:
        yield f"version {asked['waiting']} is to be evaluated at the coordinator"
    if asked["problem"]:
        yield f"not evaluated at the coordinator: {asked['problem']}"
    for alarm in asked["alarms"][-ALARMS_SHOWN:]:
        yield f"ALARM: version {alarm['version']} ({alarm['by']}): {alarm['text']}"


def _leaning(history: list[View]) -> Iterator[str]:
    """The devices whose changes pulled most against what their rounds became."""
    cosines: dict[str, list[float]] = {}
    left_out: Counter[str] = Counter()
    for round_ in history:
        left_out.update(round_["left_out"])
        for device, cosine in round_["cosines"].items():
            cosines.setdefault(device, []).append(cosine)
    for device, found in sorted(cosines.items(), key=lambda each: fmean(each[1]))[:LEANING_SHOWN]:
        out = f", left out of {left_out[device]}" if left_out[device] else ""
        yield f"{device}: mean cosine to its rounds' change {fmean(found):.2f}, rounds: {len(found)}{out}"


def waiting(view: View, spec: JobSpec | None, directory: Path) -> list[str]:
    """What a running job waits for."""
    if view["state"] != "running" or spec is None:
        return []
    round_ = view.get("open_round")
    if round_ is None:
        wanted = f"{spec.min_reports} of them" if view["rounds_done"] else f"{spec.cohort} of them"
        late = "" if view["rounds_done"] else f", or after {spec.deadline_s:g} s with {spec.min_reports}"
        text = f"waits for devices that allow task {spec.task}: begins with {wanted}{late}"
        return [f"{text}; see `fedbus-coordinator devices list --dir {directory}`"]
    requests = round_["requests"]
    lines = [
        f"round {round_['round']}: {request['device']}: {request['state']}"
        for request in requests
        if request["state"] not in ("declined", "rejected")
    ]
    folded = sum(request["state"] == "folded" for request in requests)
    if requests and folded < spec.min_reports and all(r["state"] not in OPEN for r in requests):
        lines.append(
            f"round {round_['round']}: {folded} of min_reports = {spec.min_reports} folded and nobody left "
            f"to answer: asks further devices at its deadline (deadline_s = {spec.deadline_s:g})"
        )
    return lines


def _told(found: list[View], job: str, directory: Path) -> Iterator[str]:
    hidden = len(found) - TROUBLES_SHOWN
    if hidden > 0:
        yield f"{hidden} earlier refusals: `fedbus-coordinator jobs show {job} --json --dir {directory}`"
    for trouble in found[-TROUBLES_SHOWN:]:
        yield f"round {trouble['round']}: {trouble['device']}: {trouble['state']}: {trouble['reason']}"


def _row(round_: View, *, buffered: bool) -> tuple[object, ...]:
    stale = round_["staleness"]
    return (
        round_["round"],
        len(round_["reports"]),
        round_["samples"],
        "" if round_["accuracy_before"] is None else f"{round_['accuracy_before']:.3f}",
        f"{round_['round_s']:.2f}",
        f"{sum(stale) / len(stale):.1f}" if buffered else f"{round_['overhead_s']:.3f}",
        round_["model"][:16],
    )
