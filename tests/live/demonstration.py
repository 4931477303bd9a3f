"""The demonstration as a program, for tests: run, watched, and found again whatever became of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from broker.worker import with_our_packages
from coordinator import control
from coordinator.cli.state import open_journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import Fact, Joined, UpdateJudged, VersionCommitted

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

    def processes(self) -> dict[int, str]:
        """Process ids and command lines of the living."""
        found = {}
        wanted = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(folder.name)] = line
            except OSError:
                continue
        return {pid: line for pid, line in found.items() if line}

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


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


def assert_every_round_is_there_once(demo: Demo, *, devices: int, rounds: int) -> None:
    facts = demo.facts()
    joined = [fact.device for fact in facts if isinstance(fact, Joined)]
    assert sorted(joined) == sorted({*joined})
    assert len(joined) == devices
    committed = [fact.round for fact in facts if isinstance(fact, VersionCommitted)]
    assert committed == list(range(rounds + 1))
    folded = [(f.device, f.request) for f in facts if isinstance(f, UpdateJudged) and f.folded]
    assert len(folded) == len(set(folded)) == devices * rounds
