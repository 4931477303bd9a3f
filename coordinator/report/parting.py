"""The plot of ``replay --what-if``: how far the models part, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coordinator.report import plots


@mpl.rc_context(plots.SETTINGS)
def draw(job: str, rows: Sequence[dict[str, Any]]) -> bytes:
    """A PNG. Accuracies as recorded and under the other settings where they were measured, else distances."""
    figure = Figure(figsize=plots.SIZE_INCHES)
    figure.subplots_adjust(left=0.14, right=0.975, bottom=0.135, top=0.85)
    axes = figure.subplots()
    numbers = [row["version"] for row in rows]
    if all("accuracy" in row.get("evaluation", {}) for row in rows):
        for where, colour, name in (
            ("recorded_evaluation", plots.SECOND, "as recorded"),
            ("evaluation", plots.FIRST, "under the other settings"),
        ):
            heights = [row[where]["accuracy"] for row in rows]
            axes.plot(numbers, heights, color=colour, lw=2, label=f"{name}: {heights[-1]:.3f}")
        axes.set(ylabel="accuracy", ylim=(0, 1.02))
    else:
        heights = [row["distance"] for row in rows]
        axes.plot(numbers, heights, color=plots.FIRST, lw=2, label=f"between the models: {heights[-1]:.3g}")
        axes.plot(numbers, [row["step"] for row in rows], color=plots.MUTED, lw=1, label="recorded step")
        axes.set(ylabel="L2 norm")
        axes.set_ylim(bottom=0)
    axes.set(xlabel="version")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", frameon=False)
    return plots.png(figure, f"Job {job}: the same updates under other settings")
