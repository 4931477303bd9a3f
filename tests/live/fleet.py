"""A federation of real processes on this machine: coordinator, embedded broker, enrolled agents.

For tests that kill, and benches that measure. Everything that was started is ended with the context.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from coordinator import control
from coordinator.demo.data import CONFIG, FEDERATED, make_digits

PATIENCE_S = 60.0
COORDINATOR = [sys.executable, "-P", "-m", "coordinator.cli"]
AGENT = [sys.executable, "-P", "-m", "edge_agent.cli"]


class Fleet:
    """``count`` devices with a share of the digits each; `serve` and `run` start the processes."""

    def __init__(self, directory: Path, count: int, *, alpha: float = 100.0, agent_toml: str = "") -> None:
        self.directory = directory
        self.home = directory / "coordinator"
        self.devices = [f"device-{index + 1}" for index in range(count)]
        self._alpha = alpha
        self._agent_toml = agent_toml
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.found()
        try:
            self.serve()
            data = make_digits(self.directory, len(self.devices), self._alpha, 0)
            for device, path in zip(self.devices, data.train, strict=True):
                self.enrol(device, path)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The coordinator last: a clean end of it ends the embedded broker, too.
        names = sorted(self.processes, key=lambda name: name == "coordinator")
        if "coordinator" in names and self.processes["coordinator"].poll() is not None:
            self.serve()
        for name in names:
            self.stop(name)

    def found(self) -> None:
        """Make the federation."""
        self.operate("init")

    def operate(self, *command: str) -> str:
        """``fedbus-coordinator`` on the federation's directory."""
        return self.call(COORDINATOR, *command, "--dir", str(self.home))

    def enrol(self, device: str, data: Path) -> None:
        """Make a device a member that may train on this data."""
        invited = json.loads(self.operate("invite", device, "--json"))
        home = self.agent_dir(device)
        home.mkdir(parents=True, exist_ok=True)
        (home / "agent.toml").write_text(
            f'{self.agent_toml(device)}\n[policy]\ntasks = ["vision"]\n[data]\nvision = "{data}"\n'
        )
        self.call(self.agent(device), "enroll", invited["token"], "--dir", str(home))

    def agent(self, device: str) -> list[str]:
        """The program of a device, where it runs."""
        del device
        return AGENT

    def agent_toml(self, device: str) -> str:
        """A device's settings beside policy and data."""
        del device
        return self._agent_toml

    def call(self, program: list[str], *arguments: str) -> str:
        """Run a command to its end; its standard output."""
        done = subprocess.run([*program, *arguments], check=True, stdout=subprocess.PIPE, timeout=PATIENCE_S)
        return done.stdout.decode()

    def agent_dir(self, device: str) -> Path:
        return self.directory / device

    def serve(self) -> None:
        """Start the coordinator; returns once it answers."""
        self._start("coordinator", [*COORDINATOR, "serve", "--dir", str(self.home)])
        self.until(lambda: self.ask("status") is not None)

    def run(self, device: str) -> None:
        """Start a device's agent."""
        self._start(device, [*self.agent(device), "run", "--dir", str(self.agent_dir(device))])

    def run_all(self) -> None:
        for device in self.devices:
            self.run(device)

    def _start(self, name: str, argv: list[str]) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """kill -9, and its worker with it, as when the service's group is killed."""
        process = self.processes[name]
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def stop(self, name: str) -> None:
        process = self.processes[name]
        process.terminate()
        process.wait(PATIENCE_S)

    def ask(self, op: str, **fields: Any) -> Any:
        """What the coordinator answers; None while nobody serves, or it does not answer."""

        async def ask() -> Any:
            async with asyncio.timeout(PATIENCE_S):
                return await control.call(self.home, {"op": op} | fields)

        with contextlib.suppress(control.NotServing, OSError):  # a time-out is an OSError, too
            return asyncio.run(ask())
        return None

    def submit(self, name: str = "digits", **fields: Any) -> None:
        """The demo's job, for the whole fleet."""
        local = msgspec.to_builtins(FEDERATED)
        count = len(self.devices)
        spec = {
            "name": name,
            "task": "vision",
            "config": CONFIG,
            "local": local,
            "cohort": count,
            "min_reports": count,
        }
        assert self.ask("submit", spec=spec | fields) is not None

    def job(self, name: str = "digits") -> dict[str, Any]:
        """The job as the coordinator shows it; empty while nobody serves."""
        return self.ask("job", job=name) or {}

    def finished(self, name: str = "digits") -> bool:
        return bool(self.job(name).get("state") == "finished")

    def until(self, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """Wait for something that other processes bring about."""
        end_s = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > end_s:
                raise TimeoutError(f"not within {patience_s} s; the logs are in {self.directory}")
            time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Living children of a process."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
