"""Pictures of the learning benches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from tests.bench import plot

Result = dict[str, Any]


def strategies(result: Result, path: Path) -> None:
    """Accuracy by round, and rounds to the target of each seed; a column for each skew."""
    alphas = sorted({row["alpha"] for row in result["rows"]})
    figure, grid = plt.subplots(2, len(alphas), figsize=(4 * len(alphas), 7), squeeze=False)
    for column, alpha in enumerate(alphas):
        rows = [row for row in result["rows"] if row["alpha"] == alpha]
        above, below = grid[0][column], grid[1][column]
        for place, row in enumerate(rows):
            colour = f"C{place}"
            band(above, row["accuracy"], colour, f"{row['strategy']}: {row['final_mean']:.3f}")
            reached = [each for each in row["rounds_to_target"] if each is not None]
            below.plot([place] * len(reached), reached, "o", color=colour, alpha=0.7)
        above.axhline(0.9, color="0.7", lw=0.8, zorder=0)
        above.set(xlabel="round", ylim=(0.5, 1), title=f"alpha {alpha:g}")
        above.legend(loc="lower right", fontsize=8)
        names = [row["strategy"] for row in rows]
        below.set(xticks=range(len(rows)), ylim=(0, None))
        below.set_xticklabels(names, rotation=30, ha="right", fontsize=8)
    grid[0][0].set(ylabel=f"accuracy, test set; mean and range of {len(result['seeds'])} seeds")
    grid[1][0].set(ylabel="rounds to 90 %, each seed")
    plot._save(figure, path)


def band(axes: Any, curves: list[list[float]], colour: str, name: str) -> None:
    """Mean of the seeds' curves, and their range."""
    shown = np.array([each[: min(map(len, curves))] for each in curves])
    axes.plot(shown.mean(axis=0), color=colour, lw=1.4, label=name)
    axes.fill_between(range(shown.shape[1]), shown.min(axis=0), shown.max(axis=0), color=colour, alpha=0.12)
