"""The demonstration with real processes: run through, killed in parts, killed as a whole."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from broker.worker import with_our_packages
from coordinator import control
from coordinator.cli_state import open_journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import Fact, Joined, UpdateJudged, VersionCommitted

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

MARK = "FEDBUS_TEST_DEMO"
DEADLINE_S = 240.0


class Demo:
    """Runs the program on one directory, and finds every process that came of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = f"{os.getpid()}:{directory}"
        self.environment = {**with_our_packages(os.environ), MARK: self.mark}

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "coordinator.cli", *arguments]

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv("demo", "--json", "--dir", str(self.directory), *options),
            env=self.environment,
            cwd=self.directory.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            cwd=self.directory.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def processes(self) -> list[str]:
        """Command lines of the living."""
        found = []
        wanted = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return [line for line in found if line]

    def rounds_done(self) -> int:
        try:
            jobs = asyncio.run(control.call(self.directory, {"op": "jobs"}))
        except control.NotServing:
            return -1
        return int(jobs[0]["rounds_done"]) if jobs else -1

    def facts(self) -> list[Fact]:
        journal = open_journal(self.directory)
        try:
            entries = [decode_entry(logged.data) for logged in journal.entries()]
        finally:
            journal.close()
        return [fact for entry in entries if isinstance(entry, Turned) for fact in entry.facts]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path / "demo")
    yield demo
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and demo.mark.encode() in (folder / "environ").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended with status {process.returncode}: {process.communicate()[1]}")
        time.sleep(0.05)


def finished(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return json.loads(out), err


def test_a_demo_ends_with_a_model_that_can_be_replayed_exported_and_shown(demo: Demo) -> None:
    result, _ = finished(demo.start("--devices", "3", "--rounds", "3", "--seed", "7"))

    assert (result["rounds"], result["devices"], result["dir"]) == (3, 3, str(demo.directory))
    assert result["accuracy"] > result["local_only_accuracy"]
    assert result["accuracy"] == result["accuracy_per_round"][3]
    assert 0 < result["centralised_accuracy"] <= 1
    assert len(result["round_s"]) == len(result["round_overhead_s"]) == 3
    parameters_bytes = 4 * 4_810
    assert 9 * parameters_bytes < result["bytes_up"] < 12 * parameters_bytes
    assert 9 * parameters_bytes < result["bytes_down"] < 18 * parameters_bytes
    assert demo.processes() == []
    assert (demo.directory / "curves.png").read_bytes().startswith(b"\x89PNG")

    replayed = demo.run("replay", str(demo.directory), "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["equal"] is True
    place = ("--dir", str(demo.directory))
    shown = json.loads(demo.run("jobs", "show", "digits", "--json", *place).stdout)
    assert shown["model"] == result["model_digest"]
    first = demo.directory / "first.safetensors"
    assert demo.run("models", "export", "digits", str(first), "--version", "0", *place).returncode == 0
    tensors = load_file(demo.directory / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == 4_810
    assert first.read_bytes() != (demo.directory / "model.safetensors").read_bytes()

    again = demo.run("demo", "--json", "--dir", str(demo.directory))
    assert json.loads(again.stdout) == result
    assert "finished" in again.stderr


def test_a_demo_survives_the_kill_of_its_coordinator_and_of_an_agent(demo: Demo) -> None:
    process = demo.start("--devices", "2", "--rounds", "8")
    wait_until(lambda: demo.rounds_done() >= 1, process)
    os.kill(int((demo.directory / "lock").read_text()), signal.SIGKILL)
    wait_until(lambda: demo.rounds_done() >= 2, process)
    os.kill(int((demo.directory / "devices" / "device-1" / "lock").read_text()), signal.SIGKILL)

    result, err = finished(process)
    assert result["rounds"] == 8
    assert "coordinator was ended by SIGKILL; it is started again" in err
    assert "device-1 was ended by SIGKILL; it is started again" in err
    assert_every_round_is_there_once(demo, devices=2, rounds=8)
    assert demo.processes() == []


def test_a_killed_demo_takes_its_processes_along_and_goes_on_when_run_again(demo: Demo) -> None:
    process = demo.start("--devices", "2", "--rounds", "6")
    wait_until(lambda: demo.rounds_done() >= 1, process)
    process.kill()
    process.communicate()
    wait_until(lambda: demo.processes() == [])

    result, err = finished(demo.start())
    assert result["resumed"] is True
    assert "enrolled" not in err
    assert_every_round_is_there_once(demo, devices=2, rounds=6)
    assert demo.processes() == []


def test_a_stopped_demo_says_how_to_go_on_and_leaves_nothing_running(demo: Demo) -> None:
    process = demo.start("--devices", "2", "--rounds", "1000")
    wait_until(lambda: demo.rounds_done() >= 0, process)
    process.terminate()
    out, err = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("fedbus-coordinator: stopped; the same command goes on")
    assert demo.processes() == []


def assert_every_round_is_there_once(demo: Demo, *, devices: int, rounds: int) -> None:
    facts = demo.facts()
    joined = [fact.device for fact in facts if isinstance(fact, Joined)]
    assert sorted(joined) == sorted({*joined})
    assert len(joined) == devices
    committed = [fact.round for fact in facts if isinstance(fact, VersionCommitted)]
    assert committed == list(range(rounds + 1))
    folded = [(f.device, f.request) for f in facts if isinstance(f, UpdateJudged) and f.folded]
    assert len(folded) == len(set(folded)) == devices * rounds
