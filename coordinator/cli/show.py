"""``jobs show`` in words: the rounds as a table, and below it whatever keeps a round from closing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator.cli.output import print_lines, print_table
from schemas.jobs import JobSpec, ServerSettings

View = dict[str, Any]

TROUBLES_SHOWN: Final = 10
OPEN: Final = ("issued", "accepted", "received")
COLUMNS: Final = ("round", "reports", "samples", "accuracy before", "seconds", "overhead s", "model")
BUFFERED: Final = tuple("staleness" if name == "overhead s" else name for name in COLUMNS)


def print_job(view: View, spec: JobSpec | None, directory: Path) -> None:
    """For people. ``view`` is `coordinator.views.job` with ``history`` and ``troubles``."""
    print_lines(f"job {view['job']}: {view['state']}" + (f" ({view['reason']})" if view["reason"] else ""))
    if spec is not None and spec.server != ServerSettings():
        print_lines(_server(spec.server, view["history"]))
    if view["history"]:
        buffered = spec is not None and spec.asynchronous is not None
        rows = [_row(round_, buffered=buffered) for round_ in view["history"]]
        print_table("", BUFFERED if buffered else COLUMNS, rows)
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
