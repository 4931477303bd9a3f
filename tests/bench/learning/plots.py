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
    grid[0][0].set(ylabel=f"accuracy, test set; mean and range of {len(rows[0]['final'])} seeds")
    grid[1][0].set(ylabel="rounds to 90 %, each seed")
    plot._save(figure, path)


def nova(result: Result, path: Path) -> None:
    """Accuracy by round; a row for each range of local steps, a column for each skew."""
    ranges = result["ranges"]
    alphas = ranges[0]["plan"]["alphas"]
    figure, grid = plt.subplots(
        len(ranges), len(alphas), figsize=(5 * len(alphas), 3.4 * len(ranges)), squeeze=False
    )
    for line, compared in zip(grid, ranges, strict=True):
        low, high = compared["plan"]["steps"]
        for axes, alpha in zip(line, alphas, strict=True):
            rows = [row for row in compared["rows"] if row["alpha"] == alpha]
            for place, row in enumerate(rows):
                band(axes, row["accuracy"], f"C{place}", f"{row['strategy']}: {row['final_mean']:.3f}")
            axes.axhline(0.9, color="0.7", lw=0.8, zorder=0)
            axes.set(xlabel="round", ylim=(0.3, 1), title=f"{low} to {high} local steps, alpha {alpha:g}")
            axes.legend(loc="lower right")
    seeds = len(ranges[0]["plan"]["seeds"])
    grid[0][0].set(ylabel=f"accuracy; mean and range of {seeds} seeds")
    plot._save(figure, path)


def asynchronous(result: Result, path: Path) -> None:
    """Accuracy by virtual time of every seed; a row for each skew, a column for each delay model."""
    delays, alphas = result["plan"]["delays"], result["plan"]["alphas"]
    figure, grid = plt.subplots(
        len(alphas), len(delays), figsize=(4.2 * len(delays), 3.4 * len(alphas)), squeeze=False
    )
    for row in result["rows"]:
        axes = grid[list(alphas).index(row["alpha"])][list(delays).index(row["delay"])]
        for place, name in enumerate(result["chosen"]):
            side = row[name]
            for units, accuracy in zip(side["units"], side["accuracy"], strict=True):
                axes.plot(units, accuracy, color=f"C{place}", lw=0.7, alpha=0.6)
            label = f"{name}: {np.mean(side['counted']):.1f} units to 90 %"
            axes.plot([], [], color=f"C{place}", label=label)
        axes.axhline(0.9, color="0.7", lw=0.8, zorder=0)
        axes.set(title=f"{row['delay']}, alpha {row['alpha']:g}", ylim=(0.3, 1), xlabel="virtual time, units")
        shown = max(max(row[name]["counted"]) for name in result["chosen"])
        axes.set(xlim=(0, 2 * shown))
        axes.legend(loc="lower right", fontsize=8)
    grid[0][0].set(ylabel="accuracy, test set; each seed")
    plot._save(figure, path)


def uplink(result: Result, path: Path) -> None:
    """Accuracy by round, and by bytes that the devices have sent; a row for each skew."""
    alphas = result["plan"]["alphas"]
    figure, grid = plt.subplots(len(alphas), 2, figsize=(11, 3.6 * len(alphas)), squeeze=False)
    for (left, right), alpha in zip(grid, alphas, strict=True):
        rows = [row for row in result["rows"] if row["alpha"] == alpha]
        for place, row in enumerate(rows):
            label = f"{row['strategy']}: {row['final_mean']:.4f}, {row['times_less']:.1f} times less"
            band(left, row["accuracy"], f"C{place}", label)
            left.lines[-1].set_linestyle(("-", "--", ":")[place % 3])  # they may lie on each other
            mean = np.mean(row["accuracy"], axis=0)
            sent = np.arange(len(mean)) * result["bytes_of_a_request"][row["strategy"]]["up"] / 1e6
            right.plot(sent[1:], mean[1:], color=f"C{place}", lw=1.4, label=row["strategy"])
        for axes in (left, right):
            axes.axhline(0.9, color="0.7", lw=0.8, zorder=0)
            axes.set(ylim=(0.5, 1), title=f"alpha {alpha:g}")
            axes.legend(loc="lower right", fontsize=8)
        left.set(xlabel="round", ylabel=f"accuracy, test set; mean and range of {len(row['final'])} seeds")
        right.set(xlabel="MB up, of a device that is in every round", xscale="log", ylabel="accuracy, mean")
    plot._save(figure, path)


def fashion(result: Result, path: Path) -> None:
    """Accuracy of each seed by round, beside the training in one place."""
    figure, axes = plt.subplots(figsize=(7, 3.8))
    for seed, curve in zip(result["plan"]["seeds"], result["federated"], strict=True):
        axes.plot(range(len(curve)), curve, color="C0", lw=1, label=f"seed {seed}: {curve[-1]:.3f}")
    curve = result["centralised"]
    axes.plot(range(len(curve)), curve, color="C1", lw=1, label=f"all data in one place: {curve[-1]:.3f}")
    axes.axhline(0.895, color="tab:red", linestyle="--", label="bound: 0.895")
    devices, alpha = result["plan"]["devices"], result["plan"]["alpha"]
    axes.set(xlabel="round, of two epochs", ylabel="accuracy, test set", ylim=(0.7, 1))
    axes.set(title=f"Fashion-MNIST, CNN, {devices} devices, Dirichlet({alpha:g})")
    axes.legend(loc="lower right")
    plot._save(figure, path)


def band(axes: Any, curves: list[list[float]], colour: str, name: str) -> None:
    """Mean of the seeds' curves, and their range."""
    shown = np.array([each[: min(map(len, curves))] for each in curves])
    axes.plot(shown.mean(axis=0), color=colour, lw=1.4, label=name)
    axes.fill_between(range(shown.shape[1]), shown.min(axis=0), shown.max(axis=0), color=colour, alpha=0.12)
