"""The report's plots. Inlined as SVG they take the colours of the page: they suit light, dark and paper."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from coordinator.report.gather import Comparison

INK: Final = "#24292e"
MUTED: Final = "#5f666d"
GRID: Final = "#dddfe2"
FIRST: Final = "#1f6f8b"
SECOND: Final = "#c0562f"
THIRD: Final = "#8a8f1f"
VARIABLES: Final = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    FIRST: "--first",
    SECOND: "--second",
    THIRD: "--third",
}
SIZE_INCHES: Final = (5.4, 3.3)
POINTS_MARKED_MAX: Final = 40
FIRST_ROUND_CUT: Final = 2.5  # times the longest other round
SETTINGS: Final[Any] = {
    "font.size": 9.5,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedbus",
}

Curve = Sequence[tuple[int, float]]


@mpl.rc_context(SETTINGS)
def accuracy(evaluated: Curve, compared: Comparison | None = None, central: Curve = ()) -> Figure:
    """Accuracy over rounds; ``evaluated`` is the devices' mean as (the model's round, accuracy), ``central``
    the coordinator's."""
    figure, axes = _axes("accuracy")
    end = max([1, *(number for number, _ in (*evaluated, *central))])
    if evaluated:
        colour = THIRD if compared else FIRST
        _draw(axes, evaluated, colour, f"devices' held-out parts: {evaluated[-1][1]:.3f}")
    if compared:
        end = max(end, len(compared.federated) - 1)
        tested = list(enumerate(compared.federated))
        _draw(axes, tested, FIRST, f"federated, test set: {compared.federated[-1]:.3f}")
        for own in compared.local_only:
            axes.axhline(own, color=SECOND, linewidth=0.7, alpha=0.4)
        local_only = mean(compared.local_only)
        for height, colour, name in (
            (compared.centralised, MUTED, f"centralised: {compared.centralised:.3f}"),
            (local_only, SECOND, f"local only, mean: {local_only:.3f}"),
        ):
            axes.axhline(height, color=colour, linewidth=1.5, linestyle=(0, (5, 3)), label=name)
    if central:
        _draw(axes, central, SECOND, f"coordinator's data: {central[-1][1]:.3f}")
    # From 0 to 1, unless a task calls something else its accuracy.
    heights = [0.0, 1.0, *(height for _, height in (*evaluated, *central))]
    axes.set(xlim=(0, end), ylim=(1.02 * min(heights), 1.02 * max(heights)))
    _name_in_legend(axes)
    return figure


@mpl.rc_context(SETTINGS)
def loss(evaluated: Curve, central: Curve = ()) -> Figure:
    """The devices' mean loss over rounds, as (the model's round, loss), and the coordinator's."""
    figure, axes = _axes("loss")
    if evaluated:
        _draw(axes, evaluated, FIRST, f"devices' held-out parts: {evaluated[-1][1]:.3g}")
    if central:
        _draw(axes, central, SECOND, f"coordinator's data: {central[-1][1]:.3g}")
    points = (*evaluated, *central)
    axes.set_xlim(0, max(1, *(number for number, _ in points)))
    # A loss may be below zero, as a log-likelihood is.
    axes.set_ylim(bottom=min(0.0, 1.05 * min(height for _, height in points)))
    _name_in_legend(axes)
    return figure


@mpl.rc_context(SETTINGS)
def round_times(rounds: Iterable[tuple[float, float]]) -> Figure:
    """Seconds of each round, from the first on: (slowest device's training, all else)."""
    figure, axes = _axes("seconds")
    train_s, overhead_s = zip(*rounds, strict=True)
    # The first round also starts the workers: cut it off where it would hide the others.
    total_s = [train + max(overhead, 0.0) for train, overhead in zip(train_s, overhead_s, strict=True)]
    others_s = max(total_s[1:], default=total_s[0])
    cut = total_s[0] > FIRST_ROUND_CUT * others_s
    top_s = (others_s if cut else max(total_s)) * 1.12 or 1.0
    _stack(axes, [(train_s, FIRST, "training, slowest device"), (overhead_s, SECOND, "overhead")])
    if cut:
        axes.annotate(
            f"round 1: {total_s[0]:.3g} s",
            (1.5, top_s),
            xytext=(4, -3),
            textcoords="offset points",
            va="top",
            color=MUTED,
        )
    axes.set_ylim(0, top_s)
    return figure


@mpl.rc_context(SETTINGS)
def answers(rounds: Sequence[tuple[int, int, int, int]]) -> Figure:
    """What became of each round's requests: counts of (asked, folded, rejected, declined)."""
    figure, axes = _axes("devices")
    asked, folded, rejected, declined = zip(*rounds, strict=True)
    silent = [max(all_ - sum(some), 0) for all_, *some in rounds]
    layers = [
        (folded, FIRST, "folded"),
        (rejected, SECOND, "rejected"),
        (declined, THIRD, "declined"),
        (silent, GRID, "no answer"),
    ]
    _stack(axes, [layer for layer in layers if any(layer[0])])
    axes.set_ylim(0, max(*asked, 1) * 1.06)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def svg(figure: Figure) -> str:
    """For inlining in a page that sets the properties named in `VARIABLES`."""
    out = io.StringIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    referred = set(re.findall(r"#([pm][0-9a-f]{10})\b", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def png(figure: Figure, title: str) -> bytes:
    """For other documents, on white."""
    out = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.set_size_inches(SIZE_INCHES[0], SIZE_INCHES[1] * 1.12)
        figure.subplots_adjust(top=0.76)
        figure.suptitle(title, x=0.02, ha="left", fontsize=10.5)
        figure.savefig(out, format="png", dpi=220)
    return out.getvalue()


def _axes(measured: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES)
    figure.subplots_adjust(left=0.14, right=0.975, bottom=0.135, top=0.85)
    axes = figure.subplots()
    axes.set(xlabel="round", ylabel=measured)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _draw(axes: Axes, curve: Curve, colour: str, name: str) -> None:
    marker = "o" if len(curve) <= POINTS_MARKED_MAX else ""
    rounds, heights = zip(*curve, strict=True)
    axes.plot(rounds, heights, color=colour, lw=2, marker=marker, ms=3.5, clip_on=False, zorder=3, label=name)


def _stack(axes: Axes, layers: Sequence[tuple[Sequence[float], str, str]]) -> None:
    """Bars on bars, one for each round; what is below zero counts as zero."""
    count = len(layers[0][0])
    edges = [number + 0.5 for number in range(count + 1)]
    ground = [0.0] * count
    for heights, colour, name in layers:
        top = [below + max(height, 0.0) for below, height in zip(ground, heights, strict=True)]
        if count <= POINTS_MARKED_MAX:
            above = [high - low for low, high in zip(ground, top, strict=True)]
            axes.bar(range(1, count + 1), above, 0.82, ground, color=colour, label=name)
        else:
            axes.stairs(top, edges, baseline=ground, fill=True, color=colour, label=name)
        ground = top
    axes.set_xlim(edges[0], edges[-1])
    _name_in_legend(axes, columns=4)


def _name_in_legend(axes: Axes, columns: int = 2) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1),
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.9,
        columnspacing=1.2,
    )
