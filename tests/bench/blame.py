"""One device of five trains on flipped labels: is it found in the recording, and what is won without it?

Ten recorded runs (seeds of split, first parameters and batches), the flipped device another in each. Blame
ranks one round, without and with the test set; what-if folds each round again without the device. What it
wins is the median over the rounds from `SETTLED` on, in which the model no longer learns much.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from broker.system import system_ports
from coordinator.recording import Recording
from coordinator.whatif import Settings, blame, what_if
from tests.flipped import JOB, evaluate, record

SEEDS = range(100, 110)  # 0 to 9 chose the measure
ROUNDS = 12
ROUND = 6  # that is looked at
SETTLED = 6


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    rows = []
    for seed in SEEDS:
        with TemporaryDirectory(prefix="fedbus-blame-") as name:
            rows.append(one(Path(name), seed, ROUNDS, ROUND))
    return {
        "rounds": ROUNDS,
        "round": ROUND,
        "first": sum(row["ranked"][0] == row["flipped"] for row in rows),
        "first_by_loss": sum(row["ranked_by_loss"][0] == row["flipped"] for row in rows),
        "accuracy_won_least": min(_won(row) for row in rows),
        "accuracy_won": median(_won(row) for row in rows),
        "rows": rows,
    }


def _won(row: dict[str, Any]) -> float:
    """Accuracy, in the median round."""
    rounds = zip(row["recorded"][SETTLED:], row["without"][SETTLED:], strict=True)
    won: float = median(without - recorded for recorded, without in rounds)
    return won


def one(folder: Path, seed: int, rounds: int, round_: int) -> dict[str, Any]:
    """Record a run and ask of it."""
    run = record(folder, seed, rounds)
    recording = Recording(system_ports(), run.home)
    layout = recording.store.layout(JOB)
    _, blamed = blame(recording, JOB, round_)
    losses = {each.row["device"]: evaluate(run.test, layout, each.without)["loss"] for each in blamed}
    settings = Settings(leave_out=[run.device])
    versions = list(what_if(Recording(system_ports(), run.home), JOB, settings))
    return {
        "seed": seed,
        "flipped": run.device,
        "ranked": [each.row["device"] for each in blamed],
        "cosines": [each.row["cosine"] for each in blamed],
        "ranked_by_loss": sorted(losses, key=lambda device: losses[device]),
        "recorded": [evaluate(run.test, layout, each.recorded)["accuracy"] for each in versions],
        "without": [evaluate(run.test, layout, each.other)["accuracy"] for each in versions],
    }
