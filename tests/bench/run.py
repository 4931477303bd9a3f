"""``make bench``: runs the benches, prints raw times and ratios, and keeps them in ``docs/bench/``."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coordinator.commands import RABBITMQ_CHUNK_BYTES
from schemas.encodings import ENCODINGS
from schemas.limits import MIB
from tests.bench import (
    attacks,
    blame,
    bounds,
    brokers,
    compression,
    fold,
    idle,
    journal,
    many,
    plot,
    plot_attacks,
    plot_blame,
    plot_compression,
    plot_replay,
    replay,
    restart,
    rounds,
    throughput,
    tls,
)
from tests.bench.deployed import BROKERS

RESULTS = Path(__file__).parents[2] / "docs" / "bench"
ON_BROKERS = tuple((broker,) for broker in BROKERS)
CHUNKED = (("mosquitto", MIB), ("rabbitmq", MIB), ("rabbitmq", RABBITMQ_CHUNK_BYTES))
SIZES = (
    *((1_000_000, 20, 5, 1), (1_000_000, 100, 3, 1), (10_000_000, 20, 3, 1), (10_000_000, 100, 1, 1)),
    *((1_000_000, 100, 3, 2), (10_000_000, 20, 3, 2), (10_000_000, 100, 1, 2)),
    *((10_000_000, 10, 1, 2, up) for up in ENCODINGS),
)

Benches = dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any], Path], None]]]

BENCHES: Benches = {
    "rounds": (rounds.measure, plot.rounds),
    "idle": (idle.measure, plot.idle),
    "fold": (lambda: _rows(fold.measure, SIZES), plot.fold),
    "journal": (journal.measure, plot.journal),
    "restart": (restart.measure, plot.restart),
    "throughput": (lambda: _rows(throughput.measure, CHUNKED), plot.throughput),
    "broker-rounds": (lambda: _rows(brokers.rounds, ON_BROKERS), plot.broker_rounds),
    "waiting": (lambda: _rows(many.waiting, ON_BROKERS), plot.waiting),
    "uploading": (lambda: _rows(many.uploading, ON_BROKERS), plot.uploading),
    "tls": (tls.measure, plot.tls),
    "compression": (compression.measure, plot_compression.compression),
    "attacks": (attacks.measure, plot_attacks.attacks),
    "blame": (blame.measure, plot_blame.blame),
    "replay": (lambda: _rows(replay.measure, replay.SIZES), plot_replay.replay),
}


def main() -> int:
    """Those that are named, or all. Exit status 1 if one misses a bound."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = [run(name) for name in sys.argv[1:] or BENCHES]
    return 0 if all(kept) else 1


def run(name: str, benches: Benches = BENCHES) -> bool:
    """Measure, keep, compare with the bounds; whether all of them hold."""
    measure, draw = benches[name]
    result = measure()
    found = list(bounds.of(name, result))
    keep(name, result | {"bounds": [each.told() for each in found]}, draw)
    for each in found:
        print(f"{name}: {each.told()}", flush=True)
    return all(each.holds for each in found)


def _rows(measure: Callable[..., dict[str, Any]], settings: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    rows = []
    for each in settings:
        rows.append(measure(*each))
        print(json.dumps(rows[-1]), flush=True)
    return {"rows": rows}


def keep(name: str, result: dict[str, Any], draw: Callable[[dict[str, Any], Path], None]) -> None:
    """Print a result, and write it with machine and date, and its picture."""
    document = {"bench": name, "date": datetime.now(UTC).isoformat(timespec="seconds")} | machine() | result
    print(json.dumps(document, indent=1), flush=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(document, RESULTS / f"{name}.png")


def machine() -> dict[str, Any]:
    """What it ran on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "machine": {
            "processor": models[0] if models else platform.processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        }
    }


if __name__ == "__main__":
    sys.exit(main())
