"""Pictures of the benches' results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Result = dict[str, Any]


def rounds(result: Result, path: Path) -> None:
    """Overhead of each round, beside the bound and the training."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    numbers = range(2, 2 + result["rounds"])
    axes.bar(numbers, [1e3 * s for s in result["train_s"]], color="0.8", label="training (slowest device)")
    axes.bar(
        numbers,
        [1e3 * s for s in result["round_overhead_s"]],
        bottom=[1e3 * s for s in result["train_s"]],
        color="tab:blue",
        label=f"overhead, median {1e3 * result['round_overhead_s_median']:.0f} ms",
    )
    axes.set(xlabel="round", ylabel="ms", title=f"{result['devices']} devices, MLP of 4,810 parameters")
    axes.set(ylim=(0, 1e3 * 1.3 * max(result["round_s"])))
    axes.legend(loc="upper right")
    _save(figure, path)


def idle(result: Result, path: Path) -> None:
    """The idle agent's memory."""
    figure, axes = plt.subplots(figsize=(7, 1.8))
    axes.barh(["agent, idle"], [result["rss_bytes"] / 2**20], color="tab:blue")
    axes.axvline(36, color="tab:red", linestyle="--", label="bound: 36 MiB")
    axes.set(xlabel="resident memory, MiB (worker gone, children counted)", xlim=(0, 60))
    axes.legend()
    _save(figure, path)


def fold(result: Result, path: Path) -> None:
    """Ratios to the bare work, per size."""
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(7, 3.6))
    names = [f"{row['updates']} × {row['parameters'] // 1_000_000}M" for row in rows]
    places = range(len(rows))
    axes.bar([p - 0.2 for p in places], [row["ratio"] for row in rows], 0.4, label="fold / bare work")
    axes.bar(
        [p + 0.2 for p in places],
        [row["ratio_with_arrival"] for row in rows],
        0.4,
        color="0.7",
        label="with the chunks' hashing, as after a power cut",
    )
    axes.axhline(1.3, color="tab:red", linestyle="--", label="bound: 1.3")
    axes.set(xticks=list(places), xticklabels=names, ylabel="ratio", title="Updates × parameters, one core")
    axes.set(ylim=(0, 2.4))
    axes.legend(loc="upper right")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
