"""``make bench``: runs the benches, prints raw times and ratios, and keeps them in ``docs/bench/``."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import fold, idle, plot, rounds

RESULTS = Path(__file__).parents[2] / "docs" / "bench"
SIZES = ((1_000_000, 20, 5), (1_000_000, 100, 3), (10_000_000, 20, 3), (10_000_000, 100, 1))


def main() -> None:
    wanted = sys.argv[1:] or ["rounds", "idle", "fold"]
    RESULTS.mkdir(parents=True, exist_ok=True)
    if "rounds" in wanted:
        keep("rounds", rounds.measure(), plot.rounds)
    if "idle" in wanted:
        keep("idle", idle.measure(), plot.idle)
    if "fold" in wanted:
        rows = []
        for parameters, updates, runs in SIZES:
            rows.append(fold.measure(parameters, updates, runs))
            print(json.dumps(rows[-1]), flush=True)
        keep("fold", {"rows": rows}, plot.fold)


def keep(name: str, result: dict[str, Any], draw: Any) -> None:
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
    main()
