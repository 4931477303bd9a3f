"""The demonstration's result: one document, a table, the curves."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.cli.output import print_lines, print_table

if TYPE_CHECKING:
    from coordinator.report.gather import Report

Document = dict[str, Any]
CURVES = "curves.png"
MODEL = "model.safetensors"
MANIFEST = "manifest"
REPORT = "report.html"


def print_result(result: Document, directory: Path, job: str) -> None:
    """For people, on standard output."""
    rows = [
        ("federated", f"{result['accuracy']:.3f}", f"{result['devices']} devices, {result['rounds']} rounds"),
        ("local only, mean", f"{result['local_only_accuracy']:.3f}", "each device alone, same passes"),
        ("centralised", f"{result['centralised_accuracy']:.3f}", f"{result['steps']} steps on all data"),
    ]
    print_table("accuracy on a test set that no device saw", ("model", "accuracy", ""), rows)
    round_s, overhead_s = result["round_s_median"], result["round_overhead_s_median"]
    up_mb, down_mb = result["bytes_up"] / 1e6, result["bytes_down"] / 1e6
    print_lines(
        f"a round took {round_s:.2f} s, of which fedbus {overhead_s:.3f} s (medians)",
        f"devices sent {up_mb:.2f} MB and were sent {down_mb:.2f} MB; {result['wall_s']:.0f} s in all",
        f"test set    {result['test_digest']}",
        f"model       {result['model_digest']}",
        f"in {directory}: {MODEL}, {MANIFEST}, {CURVES}, journal/",
        f"report      {(directory / REPORT).absolute().as_uri()}",
        "",
        "next, try:",
        *(f"  {command}" for command in next_commands(directory, job, result["rounds"])),
    )


def next_commands(directory: Path, job: str, rounds: int) -> list[str]:
    """Three commands that work now, for pasting into a shell."""
    program, place = _program(), shlex.quote(str(directory))
    halfway = max(rounds // 2, 1)
    out = shlex.quote(str(directory / f"round-{halfway}.safetensors"))
    return [
        f"{program} replay {place}",
        f"{program} models export {job} {out} --version {halfway} --dir {place}",
        f"{program} jobs show {job} --dir {place}",
    ]


def _program() -> str:
    """How this program was called."""
    called = Path(sys.argv[0])
    if called.name != "fedbus-coordinator":
        return f"{shlex.quote(sys.executable)} -P -m coordinator.cli"
    on_path = shutil.which(called.name)
    if on_path and Path(on_path).resolve() == called.resolve():
        return called.name
    return shlex.quote(sys.argv[0])


def curves(found: Report) -> bytes:
    """A PNG: accuracy over rounds, beside what it is compared with."""
    from coordinator.report import plots

    devices = len(found.devices)
    title = f"Handwritten digits: one model from {devices} devices whose data stayed there"
    return plots.png(plots.accuracy(found.evaluated("accuracy_before"), found.comparison), title)
