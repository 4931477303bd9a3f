"""A recording against real programs at a real Mosquitto: a staging coordinator, and builds of the agent."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from broker.worker import with_our_packages
from coordinator.config import Config
from coordinator.rekey.export import export
from coordinator.replay import replay
from coordinator.state import JobState
from schemas import events as e
from tests.brokers import Mosquitto, free_ports
from tests.live.fleet import AGENT, Fleet
from tests.live.operators import ROOT
from tests.live.plant import Program
from tests.replay.history import unsynced
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import Federation, federation, spec

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

DEVICES: Final = 20
ROUNDS: Final = 3
COUNT: Final = 20_000
"""Parameters, whose updates travel in chunks."""
GAP_S: Final = 2.0
DIFFERS: Final = 1


def operate(*arguments: str, status: int = 0) -> Any:
    """What ``fedbus-coordinator`` says, with ``--json``."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "coordinator.cli", *arguments, "--json"],
        env=with_our_packages(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr + done.stdout
    return json.loads(done.stdout)


def recorded(folder: Path) -> Path:
    """The export of a run of light devices, which answer in another order each round."""
    home, told, ports = folder / "home", folder / "told", replace(sim_ports(), files=unsynced().files)

    async def play() -> None:
        async with federation(home, ports, COUNT) as fed:
            await rounds(fed)

    virtual_loop.run(play)
    export(unsynced(), home, told, Config(broker="embedded:20000"))
    return told


async def rounds(fed: Federation) -> None:
    devices = [await fed.device(f"press-{number:02}") for number in range(DEVICES)]
    wanted: dict[str, Any] = {"cohort": DEVICES, "min_reports": DEVICES}
    await fed.command("submit", spec=spec(rounds=ROUNDS, chunk_bytes=1 << 16, **wanted))
    rng = np.random.default_rng(5)
    for _ in range(ROUNDS):
        rng.shuffle(devices)
        for device in devices:
            request = await device.next(e.TrainingRequest)
            delta = rng.standard_normal(COUNT, dtype=np.float32)
            await device.answer(request, delta, int(rng.integers(1, 100)))
            await device.next(e.Verdict)
            await asyncio.sleep(GAP_S)
    await fed.until(lambda: fed.job("job").state is JobState.FINISHED)
    await asyncio.sleep(GAP_S)  # what was said last is durable, too


def test_20_devices_played_to_a_fresh_coordinator_lead_to_the_recorded_digest(tmp_path: Path) -> None:
    told, begun, (port,) = recorded(tmp_path), tmp_path / "begun", free_ports(1)
    url = f"mqtt://127.0.0.1:{port}"
    operate("journal", "stage", str(begun), "--dir", str(told), "--broker", url)
    pid_file = tmp_path / "broker" / "mosquitto.pid"
    operate("broker", "mosquitto", "--dir", str(begun), "--pid-file", str(pid_file))
    config = (begun / "broker" / "mosquitto.conf").read_text()
    config += f"persistence_location {{base}}/\npid_file {pid_file}\n"
    serve = Program("coordinator.cli", "serve", "--dir", str(begun), log=tmp_path / "serve.log")
    with Mosquitto(pid_file.parent, config, port=port), serve:
        report = operate("replay", str(told), "--onto", url, "--speed", "50")
    assert report["equal"], report
    assert (report["updates"], report["accepted"]) == (DEVICES * ROUNDS, DEVICES * ROUNDS)
    assert (report["rejected"], report["declined"], report["differing"]) == ({}, {}, [])
    assert 0 < report["latency_ms"]["median"] <= report["latency_ms"]["p99"]
    ports = unsynced()
    first, again = (replay(ports, folder)["jobs"]["job-1"] for folder in (told, begun))
    assert [one["computed"] for one in first] == [one["computed"] for one in again]
    assert report["final"]["played"] == first[-1]["recorded"]


class Build:
    """The agent in ``packages``, on the device of an export whose state is in ``folder``. Leaving the context
    ends it."""

    def __init__(self, folder: Path, packages: Path) -> None:
        self._folder = folder
        self._environment = os.environ | {"PYTHONPATH": str(packages)}

    def __enter__(self) -> None:
        with self._folder.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [*AGENT, "run", "--dir", str(self._folder)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)


def with_a_bug(folder: Path) -> Path:
    """A copy of our packages, whose updates are a hundredth too long."""
    for package in ("broker", "compressors", "schemas", "edge_agent"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    tensors = folder / "edge_agent" / "tensors.py"
    right, wrong = "view, out=view)", "view, out=view).mul_(1.01)"
    text = tensors.read_text()
    assert text.count(right) == 1
    tensors.write_text(text.replace(right, wrong))
    return folder


def test_the_answers_of_a_build_with_a_bug_differ_and_those_of_the_recorded_build_do_not(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told"
    with Fleet(tmp_path / "fleet", 2) as fleet:
        fleet.run_all()
        fleet.submit(rounds=2)
        fleet.until(fleet.finished, 120.0)
        operate("journal", "export", str(told), "--rekey", "--dir", str(fleet.home))
        settings = (fleet.agent_dir("device-1") / "agent.toml").read_text()
    reports = {}
    with Mosquitto(tmp_path / "broker") as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        for name, packages in {"right": ROOT, "wrong": with_a_bug(tmp_path / "build")}.items():
            folder = tmp_path / name
            shutil.copytree(told / "devices" / "device-1", folder)
            (folder / "agent.toml").write_text(f'broker = "{url}"\n{settings}')
            with Build(folder, packages):
                reports[name] = operate(
                    *("replay", str(told), "--onto", url, "--device", "device-1", "--speed", "max"),
                    status=DIFFERS if name == "wrong" else 0,
                )
    assert reports["right"]["differing"] == []
    assert reports["right"]["accepted"] == 2
    found = reports["wrong"]["differing"]
    assert [(row["round"], row["device"], row["what"]) for row in found] == [
        (round_, "device-1", "update") for round_ in (1, 2)
    ]
    assert all(row["relative"] == pytest.approx(0.01, rel=0.01) for row in found)
