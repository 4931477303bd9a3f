"""The picture of the bench of replay."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import pyplot as plt

from tests.bench import plot

PARTS = (
    ("fold_s", "fold", "tab:blue"),
    ("journal_s", "journal", "0.6"),
    ("signature_s", "signatures", "0.8"),
)


def replay(result: dict[str, Any], path: Path) -> None:
    """The live run's own work, part by part, beside the replay; milliseconds for each update."""
    rows = result["rows"]
    figure, all_axes = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.6))
    for axes, row in zip(all_axes, rows, strict=True):
        below = 0.0
        for part, name, colour in PARTS:
            ms = 1e3 * median(run[part] for run in row["runs"]) / row["updates"]
            axes.bar(["live"], [ms], bottom=below, color=colour, label=name)
            below += ms
        again = 1e3 * median(run["replay_s"] for run in row["runs"]) / row["updates"]
        axes.bar(
            ["replay"], [again], color="tab:green", label=f"replay, {row['updates_per_s']:.0f} updates/s"
        )
        title = f"{row['updates']} × {row['parameters']:,}: live / replay {row['ratio']:.2f}"
        axes.set(ylabel="processor, ms an update", title=title, ylim=(0, 1.6 * max(below, again)))
        axes.legend(loc="upper right", fontsize="small")
    plot._save(figure, path)
