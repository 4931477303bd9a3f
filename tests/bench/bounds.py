"""What the benches' results must be: bounds that the project promises, each beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Final

from schemas.limits import MIB

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bound:
    """``value`` must be at most ``limit``; at least, if ``least``."""

    what: str
    value: float
    limit: float
    least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def told(self) -> str:
        """In one line."""
        side = "at least" if self.least else "at most"
        verdict = "holds" if self.holds else "MISSED"
        return f"{self.what}: {self.value:.4g}, {side} {self.limit:.4g}: {verdict}"


def _rounds(result: Result) -> Iterator[Bound]:
    yield Bound("round overhead, median, s", result["round_overhead_s_median"], 0.1)


def _idle(result: Result) -> Iterator[Bound]:
    yield Bound("idle agent, MiB", result["rss_bytes"] / MIB, 36)
    yield Bound("children of the idle agent", result["children"], 0)
    yield Bound("heavy libraries mapped", len(result["mapped"]), 0)


def _fold(result: Result) -> Iterator[Bound]:
    for row in result["rows"]:
        size = f"{row['updates']} x {row['parameters']}, {row['up']}, {row['cores']} cores"
        if row["up"] == "float32" and row["cores"] == 1:
            yield Bound(f"{size}: fold / bare work", row["ratio"], 1.3)
        elif row["up"] == "float32" and row["parameters"] >= 10_000_000:
            yield Bound(f"{size}: rate over one core's at the bare work", 1 / row["ratio"], 1.4, least=True)
        if row["cores"] > 1:
            yield Bound(f"{size}: event loop late, p99, s", row["lag_p99_s"], 0.02)
        yield Bound(f"{size}: peak over idle, bytes per parameter", row["peak_bytes_per_parameter"], 32)


def _journal(result: Result) -> Iterator[Bound]:
    for row in result["rows"]:
        what = f"appends, {row['together']} of {row['bytes'] // 1000} kB together: share of bare speed"
        if row["bytes"] >= 1_000_000:
            yield Bound(what, row["ratio"], 0.7, least=True)
        elif row["together"] > 1:
            yield Bound(what, row["ratio"], 0.3, least=True)
    yield Bound("recovery with snapshot, s", median(result["recovery"]["with_snapshot_s"]), 2)


def _restart(result: Result) -> Iterator[Bound]:
    yield Bound("killed in a round, to the next folded update, s", max(result["to_next_fold_s"]), 3)
    yield Bound("updates trained twice", result["trained_twice"], 0)
    yield Bound("devices that joined again", result["joined_again"], 0)


def _throughput(result: Result) -> Iterator[Bound]:
    for row in result["rows"]:
        chunks = f"{row['broker']}, chunks of {row['chunk_bytes'] // 1024} KiB"
        if row["chunk_bytes"] == MIB:
            yield Bound(f"{chunks}: uploads' share of bare speed", row["ratio"], 0.5, least=True)
            yield Bound(f"{chunks}: rounds' share of bare speed", row["round_ratio"], 0.5, least=True)


def _uploading(result: Result) -> Iterator[Bound]:
    for row in result["rows"]:
        broker, devices = row["broker"], row["devices"]
        yield Bound(f"{broker}: broker, MiB", row["broker_rss_peak_bytes"] / MIB, row["bound_bytes"] / MIB)
        for what in ("receipted", "folded"):
            yield Bound(f"{broker}: updates {what}", row[what], devices, least=True)
        yield Bound(f"{broker}: updates taken twice", row["twice"], 0)


def _tls(result: Result) -> Iterator[Bound]:
    yield Bound("agent while it sends, MiB", result["rss_peak_bytes"] / MIB, 48)
    more_bytes = result["rss_after_bytes"] - result["rss_idle_bytes"]
    yield Bound(f"agent {result['after_s']:.0f} s later, MiB over idle", more_bytes / MIB, 2)


def _blame(result: Result) -> Iterator[Bound]:
    for how, name in (("", "first"), (" with a test set", "first_by_loss")):
        yield Bound(f"seeds in which the flipped device is ranked first{how}", result[name], 9, least=True)
    yield Bound("accuracy won without it, least of all seeds", result["accuracy_won_least"], 0, least=True)


def _replay(result: Result) -> Iterator[Bound]:
    for row in result["rows"]:
        size = f"{row['updates']} x {row['parameters']}"
        yield Bound(f"{size}: live run's own work / replay", row["ratio"], 1, least=True)
        if row["parameters"] >= 1_000_000:  # of smaller ones, signatures and journal are a good part
            yield Bound(f"{size}: live run's folding alone / replay", row["ratio_to_fold"], 1, least=True)


def _strategies(result: Result) -> Iterator[Bound]:
    for row in result["rows"]:
        if row["strategy"] == "FedAvg":
            off = abs(row["final_mean"] - result["anchors"][str(row["alpha"])])
            yield Bound(f"alpha {row['alpha']:g}: FedAvg's accuracy off the reference", off, 0.015)


def _nova(result: Result) -> Iterator[Bound]:
    for compared in result["ranges"]:
        low, high = compared["plan"]["steps"]
        for row in compared["rows"]:
            if row["strategy"] == "FedNova":
                what = f"{low} to {high} local steps, alpha {row['alpha']:g}: FedNova"
                yield Bound(
                    f"{what}'s accuracy over FedAvg's", row["final_over_first"]["mean"], 0, least=True
                )
                fewer = row["fewer_rounds_than_first"]["mean"]
                yield Bound(f"{what}: FedAvg's rounds to 90 % / its own", fewer, 1, least=True)


def _asynchronous(result: Result) -> Iterator[Bound]:
    least = {"half-normal": 1.0, "lognormal": 2.0, "heavy tail": 1.6}
    for row in result["rows"]:
        if "speed_up" not in row:
            continue
        cell = f"{row['delay']}, alpha {row['alpha']:g}"
        yield Bound(
            f"{cell}: times as fast as synchronous", row["speed_up"]["mean"], least[row["delay"]], True
        )
        yield Bound(f"{cell}: the same, interval from", row["speed_up"]["low"], 1, least=True)
        for what in ("slow_over_first", "slow_unseen_over_first"):
            if what in row:
                yield Bound(f"{cell}: slow devices' accuracy lost", -row[what]["mean"], 0.02)


def _bytes(result: Result) -> Iterator[Bound]:
    plain = {row["alpha"]: row for row in result["rows"] if row["strategy"] == "float32"}
    most = max(row["times_less"] for row in result["rows"])
    yield Bound("times fewer bytes up than float32, of any encoding", most, 25, least=True)
    for row in result["rows"]:
        if row["strategy"] != result["best_thin"]:
            continue
        cell = f"{row['strategy']}, alpha {row['alpha']:g}"
        yield Bound(f"{cell}: times fewer bytes up than float32", row["times_less"], 25, least=True)
        yield Bound(f"{cell}: accuracy lost", -row["final_over_first"]["mean"], 0.005)
        never = result["plan"]["rounds"] + 1
        ours, theirs = (
            fmean(each or never for each in side["rounds_to_target"]) for side in (row, plain[row["alpha"]])
        )
        yield Bound(f"{cell}: rounds to 90 % over float32's", ours / theirs, 1.1)


def _fashion(result: Result) -> Iterator[Bound]:
    rounds = result["plan"]["rounds"]
    for seed, best in zip(result["plan"]["seeds"], result["best"], strict=True):
        yield Bound(f"seed {seed}: accuracy within {rounds} rounds", best, 0.895, least=True)


def _attacks(result: Result) -> Iterator[Bound]:
    yield Bound("points lost to the worst attack, alpha 0.5", result["lost"]["0.5"]["points"], 4)


_BOUNDS: Final[dict[str, Callable[[Result], Iterator[Bound]]]] = {
    "rounds": _rounds,
    "idle": _idle,
    "fold": _fold,
    "journal": _journal,
    "restart": _restart,
    "throughput": _throughput,
    "uploading": _uploading,
    "tls": _tls,
    "attacks": _attacks,
    "blame": _blame,
    "replay": _replay,
    "strategies": _strategies,
    "nova": _nova,
    "asynchronous": _asynchronous,
    "bytes": _bytes,
    "fashion": _fashion,
}


def of(bench: str, result: Result) -> Iterator[Bound]:
    """Those of one bench; none where nothing is promised."""
    if bench in _BOUNDS:
        yield from _BOUNDS[bench](result)
