"""The picture of the bench of attacks."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from tests.bench import plot


def attacks(result: dict[str, Any], path: Path) -> None:
    """A table in colours for each alpha: the accuracy under each rule and attack, and the worst."""
    rules, kinds = result["rules"], result["attacks"]
    figure, panels = plt.subplots(1, len(result["seeds"]), figsize=(13, 4.2), sharey=True)
    for axes, (alpha, seeds) in zip(panels, result["seeds"].items(), strict=True):
        found = {
            (row["rule"], row["attack"]): mean(row["accuracy"])
            for row in result["rows"]
            if row["alpha"] == float(alpha)
        }
        cells = np.array([[found[rule, kind] for kind in kinds] for rule in rules])
        cells = np.column_stack([cells, cells.min(axis=1)])
        axes.imshow(cells, cmap="RdYlGn", vmin=0.5, vmax=1.0, aspect="auto")
        for (row, column), value in np.ndenumerate(cells):
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(kinds) + 1), [*kinds, "worst"], rotation=40, ha="right")
        axes.set_yticks(range(len(rules)), rules)
        axes.set(title=f"accuracy, 20 % hostile, alpha {alpha}, {len(seeds)} seeds")
    plot._save(figure, path)
