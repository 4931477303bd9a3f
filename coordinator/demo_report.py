"""The demonstration's result: one document, a table, the curves."""

from __future__ import annotations

import io
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from coordinator.cli_output import print_lines, print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Document = dict[str, Any]
CURVES = "curves.png"
MODEL = "model.safetensors"
MANIFEST = "manifest"
NAMES_APART = 0.06  # accuracy: the height of a line of text in the picture


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


def curves(federated: Sequence[float], local_only: Sequence[float], centralised: float) -> bytes:
    """A PNG: accuracy on the test set over rounds; ``federated`` from version 0 on."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(8, 4.8), dpi=150, layout="constrained")
    rounds = len(federated) - 1
    axes.plot(
        range(rounds + 1),
        federated,
        color="#1f6f8b",
        linewidth=2.2,
        marker="o",
        markersize=4,
        zorder=3,
        clip_on=False,
    )
    lines = [
        (federated[-1], "#1f6f8b", "federated"),
        (centralised, "#3a3a3a", "centralised"),
        (mean(local_only), "#c0562f", "local only, mean"),
    ]
    for height, colour, _ in lines[1:]:
        axes.axhline(height, color=colour, linewidth=1.6, linestyle=(0, (5, 3)))
    for own in local_only:
        axes.plot([0, rounds], [own, own], color="#c0562f", linewidth=0.7, alpha=0.35)
    _name_at_the_right(axes, rounds, lines)
    axes.set(xlim=(0, rounds), ylim=(0, 1.04), xlabel="round", ylabel="accuracy on the test set")
    title = f"Handwritten digits: one model from {len(local_only)} devices whose data stayed there"
    axes.set_title(title, loc="left", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    plt.close(figure)
    return out.getvalue()


def _name_at_the_right(axes: Axes, rounds: int, lines: list[tuple[float, str, str]]) -> None:
    """Names beside the ends of the lines, apart from each other even where the lines meet."""
    named = sorted(lines, reverse=True)
    places = [height for height, _, _ in named]
    for upper in range(len(places) - 1):
        lack = NAMES_APART - (places[upper] - places[upper + 1])
        if lack > 0:
            places[upper] += lack / 2
            places[upper + 1] -= lack / 2
    for at, (height, colour, name) in zip(places, named, strict=True):
        axes.annotate(
            f"{height:.3f}  {name}",
            (rounds, at),
            xytext=(8, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
