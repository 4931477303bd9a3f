"""The picture of the bench of blame and what-if."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import pyplot as plt

from tests.bench import plot


def blame(result: dict[str, Any], path: Path) -> None:
    """Accuracies with and without the flipped device; the cosines that it is found by."""
    rows = result["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for what, colour, name in (
        ("recorded", "tab:red", "as recorded"),
        ("without", "tab:blue", "its round without the flipped device"),
    ):
        for row in rows:
            left.plot(row[what], color=colour, lw=0.6, alpha=0.35)
        middle = [median(each) for each in zip(*(row[what] for row in rows), strict=True)]
        left.plot(middle, color=colour, lw=2, label=f"{name}: {middle[-1]:.3f}")
    left.set(xlabel="version", ylabel="accuracy, test set", ylim=(0, 1))
    left.set(title=f"medians of {len(rows)} seeds, the same updates")
    left.legend(loc="lower right")
    for row in rows:
        for device, cosine in zip(row["ranked"], row["cosines"], strict=True):
            right.plot(row["seed"], cosine, "o", color="tab:red" if device == row["flipped"] else "0.6")
    right.axhline(0, color="0.8", lw=0.8, zorder=0)
    right.set(xlabel="seed", ylabel="cosine with the others' mean")
    right.set(title=f"round {result['round']}: flipped device (red) first in {result['first']}")
    plot._save(figure, path)
