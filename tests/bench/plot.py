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
    rows = [row for row in result["rows"] if row["up"] == "float32"]
    figure, axes = plt.subplots(figsize=(8, 3.6))
    names = [f"{row['updates']} × {row['parameters'] // 1_000_000}M\n{row['cores']} cores" for row in rows]
    places = range(len(rows))
    axes.bar([p - 0.2 for p in places], [row["ratio"] for row in rows], 0.4, label="fold / bare work")
    axes.bar(
        [p + 0.2 for p in places],
        [row["ratio_with_arrival"] for row in rows],
        0.4,
        color="0.7",
        label="with the chunks' hashing, as after a power cut",
    )
    axes.axhline(1.3, color="tab:red", linestyle="--", label="bound, one core: 1.3")
    axes.axhline(1 / 1.4, color="tab:orange", linestyle="--", label="bound, two cores, from 10M: 1/1.4")
    axes.set(xticks=list(places), xticklabels=names, ylabel="ratio", title="Updates × parameters")
    axes.set(ylim=(0, 2.4))
    axes.legend(loc="upper right")
    _save(figure, path)


def journal(result: Result, path: Path) -> None:
    """Appends beside the bare work, and recovery."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    rows, recovery = result["rows"], result["recovery"]
    left.bar(range(len(rows)), [row["ratio"] for row in rows], color="tab:blue")
    for place, row in enumerate(rows):
        left.text(place, row["ratio"], f"{row['appends_per_s']:,.0f}/s", ha="center", va="bottom")
    names = [f"{row['bytes'] // 1000} kB\n× {row['together']}" for row in rows]
    left.set(xticks=list(range(len(rows))), xticklabels=names, ylim=(0, 1.3))
    left.set(ylabel="share of the bare speed", title="durable appends")
    for place, what in enumerate(("with_snapshot_s", "without_snapshot_s")):
        right.plot([place] * len(recovery[what]), recovery[what], "o", color="tab:blue")
    right.axhline(2.0, color="tab:red", linestyle="--", label="bound, with snapshot: 2 s")
    right.set(xticks=[0, 1], xticklabels=["with snapshot", "without"], xlim=(-0.5, 1.5), ylabel="s")
    right.set(ylim=(0, None), title=f"recovery after {recovery['updates']:,} updates")
    right.legend()
    _save(figure, path)


def restart(result: Result, path: Path) -> None:
    """From a new process to the next folded update, of each kill."""
    figure, axes = plt.subplots(figsize=(7, 2.4))
    axes.bar(range(1, 1 + result["kills_in_a_round"]), result["to_next_fold_s"], color="tab:blue")
    axes.axhline(3.0, color="tab:red", linestyle="--", label="bound: 3 s")
    axes.set(
        xlabel="kill", ylabel="s", title=f"{result['devices']} agents live on; to the next folded update"
    )
    axes.legend()
    _save(figure, path)


def throughput(result: Result, path: Path) -> None:
    """Bare clients and receipted updates, side by side."""
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(7, 1.2 + len(rows)))
    for offset, field, colour, label in (
        (-0.2, "raw_mib_per_s", "0.7", "bare clients"),
        (0.2, "receipted_mib_per_s", "tab:blue", "updates, receipted"),
    ):
        axes.barh(
            [n + offset for n in range(len(rows))],
            [row[field] for row in rows],
            0.38,
            color=colour,
            label=label,
        )
    labels = [
        f"{row['broker']}, {row['chunk_bytes'] // 1024:,} KiB chunks\n"
        f"ratio {row['ratio']:.2f}, of a round {row['round_ratio']:.2f}"
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), labels)
    axes.set(xlabel=f"MiB/s, from {rows[0]['devices']} devices", title="the same bytes, the same broker")
    axes.legend(loc="upper right")
    _save(figure, path)


def broker_rounds(result: Result, path: Path) -> None:
    """Overhead of every round, by broker."""
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for row in result["rows"]:
        label = f"{row['broker']}, median {1e3 * row['round_overhead_s_median']:.0f} ms"
        times = [1e3 * s for s in row["round_overhead_s"]]
        axes.plot(range(2, 2 + len(times)), times, marker="o", markersize=3, label=label)
    axes.set(xlabel="round", ylabel="overhead, ms", ylim=(0, None), title="demonstration with 4 devices")
    axes.legend()
    _save(figure, path)


def waiting(result: Result, path: Path) -> None:
    """Deliveries, and the memory of a thousand idle connections."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    rows = result["rows"]
    names = [row["broker"] for row in rows]
    left.barh(names, [row["last_delivery_s"] for row in rows], color="tab:blue")
    left.set(xlabel="s to the last of 1,000 deliveries")
    right.barh(names, [row["broker_rss_idle_bytes"] / 2**20 for row in rows], color="0.7", label="broker")
    right.barh(
        names,
        [row["coordinator_rss_bytes"] / 2**20 for row in rows],
        0.3,
        color="tab:blue",
        label="coordinator",
    )
    right.set(xlabel="resident memory, MiB")
    right.legend()
    _save(figure, path)


def uploading(result: Result, path: Path) -> None:
    """The broker's memory, idle and at its highest, and the bound."""
    figure, axes = plt.subplots(figsize=(7, 2.8))
    rows = result["rows"]
    names = [row["broker"] for row in rows]
    axes.barh(
        names, [row["broker_rss_peak_bytes"] / 2**20 for row in rows], color="tab:blue", label="highest"
    )
    axes.barh(names, [row["broker_rss_idle_bytes"] / 2**20 for row in rows], color="0.7", label="idle")
    axes.scatter(
        [row["bound_bytes"] / 2**20 for row in rows], names, color="tab:red", marker="|", s=300, label="bound"
    )
    axes.set(xlabel="the broker's resident memory, MiB", title="200 devices upload 4 MB each at once")
    axes.legend(loc="lower right")
    _save(figure, path)


def tls(result: Result, path: Path) -> None:
    """The resident agent's memory around an update of 100 MB."""
    figure, axes = plt.subplots(figsize=(7, 2.2))
    names = ["60 s after", "highest", "idle"]
    sizes = [result[f"rss_{field}_bytes"] / 2**20 for field in ("after", "peak", "idle")]
    axes.barh(names, sizes, color=["0.7", "tab:blue", "0.7"])
    axes.axvline(48, color="tab:red", linestyle="--", label="bound: 48 MiB")
    axes.set(xlabel="resident agent over TLS, MiB, while it sends 100 MB")
    axes.legend(loc="lower right")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
