"""The journal: durable appends beside the bare work of the same bytes, and how long recovery takes.

The bare work is one write, one SHA-256 and one fdatasync in the same folder, in turn with the journal's so
that both meet the same disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from broker.journal import Journal
from broker.system import system_ports
from coordinator.keystore import load_identity
from coordinator.recovery import open_recovered
from coordinator.snapshots import FOLDER as SNAPSHOTS
from schemas import events as e
from tests.standin import StandIn, federation, spec

SIZES = (1_000, 1_000_000)  # bytes of an entry
GROUPS = {1_000: 64, 1_000_000: 7}  # entries that come at once; 8 MiB are a frame at most
TURNS = 60  # of each
DEVICES, ROUNDS = 100, 100  # 10,000 updates
COUNT = 10  # parameters: recovery reads no update
STARTS = 3


def measure() -> dict[str, Any]:
    with TemporaryDirectory(prefix="fedbus-journal-", dir=Path.cwd()) as name:
        rows = [_appends(Path(name), size, count) for size in SIZES for count in (1, GROUPS[size])]
        for row in rows:
            print(json.dumps(row), flush=True)
        return {"rows": rows, "recovery": _recovery(Path(name) / "coordinator")}


def _appends(folder: Path, size: int, count: int) -> dict[str, Any]:
    """Seconds of each turn: ``count`` entries of ``size`` bytes, durable."""
    data = [os.urandom(size) for _ in range(count)]
    journal_s, bare_s = asyncio.run(_in_turn(folder / f"{size}-{count}", data))
    return {
        "bytes": size,
        "together": count,
        "journal_s": journal_s,
        "bare_s": bare_s,
        "appends_per_s": count / median(journal_s),
        "bare_per_s": count / median(bare_s),
        "ratio": median(bare_s) / median(journal_s),
    }


async def _in_turn(folder: Path, data: list[bytes]) -> tuple[list[float], list[float]]:
    ports = system_ports()
    journal = Journal.open(ports.files, folder, bytes(16))
    bare = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT, 0o600)
    journal_s, bare_s = [], []
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(journal.run(ports.offload), name="journal")
        for _ in range(TURNS):
            began_s = time.perf_counter()
            for done in [journal.append(each) for each in data]:
                await done
            journal_s.append(time.perf_counter() - began_s)
            bare_s.append(_timed(lambda: _write(bare, data)))
        running.cancel()
    os.close(bare)
    journal.close()
    return journal_s, bare_s


def _write(descriptor: int, data: list[bytes]) -> None:
    whole = data[0] if len(data) == 1 else b"".join(data)
    sha256(whole).digest()
    written = os.write(descriptor, whole)
    assert written == len(whole)
    os.fdatasync(descriptor)


def _timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _recovery(directory: Path) -> dict[str, Any]:
    """Seconds until a new process has the state, with the snapshots and without."""
    asyncio.run(_play(directory))
    with_s = [_start(directory) for _ in range(STARTS)]
    for path in (directory / SNAPSHOTS).iterdir():
        path.unlink()
    without_s = [_start(directory) for _ in range(STARTS)]
    return {
        "updates": DEVICES * ROUNDS,
        "entries": with_s[0]["entries"],
        "with_snapshot_s": [each["s"] for each in with_s],
        "without_snapshot_s": [each["s"] for each in without_s],
    }


async def _play(directory: Path) -> None:
    async with federation(directory, system_ports(), COUNT) as fed:
        devices = [await fed.device(f"d{index}") for index in range(DEVICES)]
        await fed.command("submit", spec=spec(rounds=ROUNDS + 1, cohort=DEVICES, update_norm_max=1e3))
        for _ in range(ROUNDS):
            async with asyncio.TaskGroup() as tasks:
                for device in devices:
                    tasks.create_task(_answer(device))
        await fed.until(lambda: fed.job("job").rounds_done == ROUNDS)
        for device in devices[: DEVICES // 2]:  # a round is open when it stops
            await _answer(device)


async def _answer(device: StandIn) -> None:
    await device.answer(await device.next(e.TrainingRequest), np.ones(COUNT, np.float32))
    await device.next(e.Verdict)


def _start(directory: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.journal", str(directory)], check=True, capture_output=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _recovered(directory: Path) -> None:
    files = system_ports().files
    federation_id = load_identity(files, directory).federation
    began_s = time.perf_counter()
    journal, recovered = open_recovered(files, directory, federation_id, read_only=True)
    took_s = time.perf_counter() - began_s
    assert sum(device.folded for device in recovered.state.devices.values()) > DEVICES * ROUNDS
    print(json.dumps({"s": took_s, "entries": journal.count}))


if __name__ == "__main__":
    _recovered(Path(sys.argv[1]))
