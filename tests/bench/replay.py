"""Replay beside the live run's own work on the same updates: how much of it a check costs again.

Light devices answer round after round; nobody trains. While it records, the coordinator's own work on updates
is timed, part by part, as the processor time of the threads that do it, so without waiting for devices, for
the disk or for other threads: the signature of each update (``signature_s``), the frames of the journal
(``journal_s``), and the folding (``fold_s``): each update opened, measured and added, each version divided,
added to its base, hashed and written. Not in it: receiving and hashing chunks, deciding, receipts, and
sealing the models for devices.

Then a process of its own replays the directory: all of it, from reading the keys on. It reads and checks the
journal, verifies the signatures, opens, measures and adds the updates, and hashes each version. ``replay_s``
is its processor time, ``wall_s`` its time. Both run on one core, and read the updates from the page cache.

``ratio`` is (signature_s + journal_s + fold_s) / replay_s: at least 1 when a replay costs no more than the
live run's own work on what it repeats. ``ratio_to_fold`` is fold_s / replay_s, as if the live run had neither
checked nor recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np
import structlog

from broker.journal import Journal
from broker.system import system_ports
from coordinator import works
from coordinator.fold import Folder
from coordinator.replay import replay
from schemas import events as e
from schemas.envelope import Envelope
from schemas.limits import MIB
from tests.standin import federation, spec

P = ParamSpec("P")
R = TypeVar("R")

SIZES = ((1_000_000, 10, 6), (100_000, 10, 20))
"""Parameters, devices, rounds."""
RUNS = 5
PARTS = ("signature_s", "journal_s", "fold_s")
JOB = "job"


class Watch:
    """Processor seconds that threads spend in some functions."""

    def __init__(self) -> None:
        self.spent_s = dict.fromkeys(PARTS, 0.0)

    def on(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            began_s = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent_s[part] += time.thread_time() - began_s

        return timed

    def on_updates(
        self, part: str, check: Callable[[Envelope, bytes], None]
    ) -> Callable[[Envelope, bytes], None]:
        """Messages with content in chunks are updates: nobody else here sends such."""
        timed = self.on(part, check)
        return lambda envelope, signer: (timed if envelope.clear.chunks else check)(envelope, signer)


async def record(directory: Path, parameters: int, devices: int, rounds: int) -> dict[str, float]:
    """Record, and what the coordinator's fold work took."""
    watch = Watch()
    with (
        patch.object(Envelope, "check_signature", watch.on_updates("signature_s", Envelope.check_signature)),
        patch.object(Journal, "_commit", watch.on("journal_s", Journal._commit)),
        patch.object(Folder, "begin", watch.on("fold_s", Folder.begin)),
        patch.object(Folder, "open_part", watch.on("fold_s", Folder.open_part)),
        patch.object(Folder, "end", watch.on("fold_s", Folder.end)),
        patch.object(works.Works, "_finish", watch.on("fold_s", works.Works._finish)),
    ):
        async with federation(directory, system_ports(), count=parameters) as fed:
            standins = [await fed.device(f"d{index:03d}") for index in range(devices)]
            job = spec(JOB, rounds=rounds, cohort=devices, min_reports=devices, update_norm_max=1e9)
            await fed.command("submit", spec=job)
            draw = np.random.default_rng(1)
            for _ in range(rounds):
                for device in standins:
                    request = await device.next(e.TrainingRequest)
                    delta = draw.standard_normal(parameters, dtype=np.float32)
                    sealed, chunks = device.seal(request, *device.update(request, delta, 10), MIB)
                    await device.send_chunks(await device.offer(sealed), chunks)
            await standins[0].next(e.JobFinished)  # said once the last version is durable
    return watch.spent_s


def again(directory: Path) -> dict[str, float]:
    """Replay, and what it took."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    result = replay(system_ports(), directory)
    replay_s, wall_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
    assert result["equal"]
    return {"replay_s": replay_s, "wall_s": wall_s}


def measure(parameters: int, devices: int, rounds: int) -> dict[str, Any]:
    """One row: recorded and replayed `RUNS` times."""
    updates = devices * rounds
    row: dict[str, Any] = {"parameters": parameters, "updates": updates, "versions": rounds + 1, "runs": []}
    for _ in range(RUNS):
        with TemporaryDirectory(prefix="fedbus-replay-", dir=Path.cwd()) as name:
            directory = Path(name) / "c"
            told = _child("record", directory, parameters, devices, rounds)
            row["runs"].append(told | _child("again", directory, parameters, devices, rounds))
    row["ratio"] = median(sum(run[part] for part in PARTS) / run["replay_s"] for run in row["runs"])
    row["ratio_to_fold"] = median(run["fold_s"] / run["replay_s"] for run in row["runs"])
    row["updates_per_s"] = updates / median(run["wall_s"] for run in row["runs"])
    return row


def _child(what: str, directory: Path, *size: int) -> Any:
    argv = [sys.executable, "-m", "tests.bench.replay", what, str(directory), *map(str, size)]
    return json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["record", "again"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("size", type=int, nargs=3)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if options.what == "record":
        print(json.dumps(asyncio.run(record(options.directory, *options.size))))
    else:
        print(json.dumps(again(options.directory)))


if __name__ == "__main__":
    main()
