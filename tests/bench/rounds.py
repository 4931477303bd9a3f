"""What a round costs beside the training: four warm, equal agents on the embedded broker, as processes.

``overhead_s`` of a round runs from the publishing of its requests to the commit of the new version, less
the slowest device's time inside the task's ``train``. The first round is left out: workers start in it.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from coordinator.cli.state import open_records
from coordinator.history import history
from tests.live.fleet import Fleet

DEVICES = 4
ROUNDS = 40


def measure() -> dict[str, Any]:
    """One job of `ROUNDS` rounds; raw times of every round but the first."""
    with TemporaryDirectory(prefix="fedbus-rounds-") as name:
        with Fleet(Path(name), DEVICES) as fleet:
            fleet.run_all()
            fleet.submit(rounds=ROUNDS)
            fleet.until(fleet.finished, 300.0)
        with open_records(Path(name) / "coordinator") as tables:
            rounds = history(tables, "digits")[1:]
    return {
        "devices": DEVICES,
        "rounds": len(rounds),
        "round_overhead_s": [view["overhead_s"] for view in rounds],
        "round_s": [view["round_s"] for view in rounds],
        "train_s": [view["train_s"] for view in rounds],
        "round_overhead_s_median": median(view["overhead_s"] for view in rounds),
        "round_s_median": median(view["round_s"] for view in rounds),
        "train_s_median": median(view["train_s"] for view in rounds),
    }
