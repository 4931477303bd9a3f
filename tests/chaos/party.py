"""A fleet at a real broker, as the operator's commands set it up, with lines that can be cut."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from broker.system import system_ports
from edge_agent.ledger import RequestRecord, RequestState, read_ledger
from tests.bench.deployed import Deployment
from tests.brokers import Mosquitto
from tests.chaos.links import Links
from tests.chaos.record import Key, Violation
from tests.live.fleet import AGENT, Fleet, children

ROUNDS: Final = 10  # of a job; another one follows as long as there is something to be done to it
HIDDEN: Final = 1_000  # 75,010 parameters: five chunks
BUFFERED: Final = {"cohort": 2, "asynchronous": {"concurrency": 4, "staleness_max": 1_000}}
LOCAL: Final = {"epochs": 5, "batch_size": 16, "learning_rate": 0.01, "momentum": 0.9}
DEADLINE_S: Final = 60.0
PATIENCE_S: Final = 180.0
WHERE: Final = re.compile(r"receipted: journal index (\d+)")


class Party(Fleet):
    """Devices with real training at a broker; jobs follow one another."""

    def __init__(
        self,
        directory: Path,
        count: int,
        deployment: Deployment,
        links: Links,
        places: dict[str, Path],
        seed: int = 0,
    ) -> None:
        super().__init__(directory, count)
        self.home = deployment.site.directory
        self.broker = deployment.broker
        self.links = links
        self.job_name = ""
        self._places = places
        self._seed = seed
        self._count = 0

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raises `Violation` if a program does not end well."""
        unwell = []
        for name in sorted(self.processes, key=lambda name: name == "coordinator"):
            process = self.processes[name]
            if process.poll() is not None:
                continue
            try:
                self.stop(name)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.returncode:
                unwell.append(f"{name} was told to end, and ended with status {process.returncode}")
        if unwell and exc is None:
            raise Violation("; ".join(unwell))

    def until(self, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        super().until(condition, patience_s)  # the machine may be busy with much else

    def found(self) -> None:
        """The broker's set-up has made the federation."""

    def agent_dir(self, device: str) -> Path:
        return self._places.get(device) or super().agent_dir(device)

    def agent(self, device: str) -> list[str]:
        return [*self.links.before(device), *AGENT]

    def agent_toml(self, device: str) -> str:
        url = self.links.url(device)
        return f'broker = "{url}"' if url else ""

    @property
    def broker_pid(self) -> int:
        return self.broker.pid

    def settle_broker(self) -> None:
        """RabbitMQ needs some seconds before what was declared survives anything."""
        if not isinstance(self.broker, Mosquitto):
            self.broker.settle()

    def next_job(self) -> None:
        """One more, for all devices, every second one asynchronous (with an odd seed, the first); neither
        waits for a device whose worker was killed."""
        self._count += 1
        self.job_name = f"job-{self._count}"
        config = {"model": "mlp", "shape": [8, 8], "classes": 10, "hidden": HIDDEN, "scale": 16.0}
        self.submit(
            self.job_name,
            config=config | {"held_out": 0.1},
            local=LOCAL,
            rounds=ROUNDS,
            min_reports=1,
            **(BUFFERED if (self._count + self._seed) % 2 == 0 else {}),
            deadline_s=DEADLINE_S,
            chunk_bytes=1 << 16,
        )

    def working(self) -> bool:
        """Whether the newest job has not ended."""
        return not self.finished(self.job_name)

    def held(self, device: str) -> list[RequestRecord]:
        """Requests that a device answers for: to be trained, or with an update that has no receipt."""
        data = read_ledger(system_ports().files, self.agent_dir(device))
        return [r for r in data.requests if r.state in (RequestState.ACCEPTED, RequestState.MADE)]

    def known(self, key: Key) -> RequestRecord | None:
        """What a device remembers of a request."""
        data = read_ledger(system_ports().files, self.agent_dir(key.device))
        return next((r for r in data.requests if r.key == (key.job, key.number)), None)

    def worker(self, device: str) -> int:
        """The process that trains; 0 if there is none."""
        return next(iter(children(self.processes[device].pid)), 0)

    def uploading(self) -> bool:
        """Whether the coordinator holds a part of an update."""
        folder = self.home / "spool"
        return folder.is_dir() and any(folder.iterdir())

    def log(self, who: str) -> str:
        """What coordinator or device said, in all its lives."""
        path = self.directory / f"{who}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def receipts(self) -> Iterator[tuple[Key, int]]:
        """Every receipt that a device saw, by its log and by what it remembers; 0: the entry is not told."""
        for device in self.devices:
            for line in self.log(device).splitlines():
                found = WHERE.search(line)
                if found and line.startswith("{"):
                    said = json.loads(line)
                    yield Key(said["job"], device, said["request"]), int(found[1])
            for record in read_ledger(system_ports().files, self.agent_dir(device)).requests:
                if record.state is RequestState.RECEIPTED:
                    yield Key(record.job, device, record.number), 0

    def all_run(self) -> None:
        """Raises `Violation` if a program ended that nobody killed."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                last = self.log(name).strip().splitlines()[-1:]
                raise Violation(f"{name} ended by itself (status {process.returncode}): {' '.join(last)}")

    def signal(self, name: str, number: int) -> None:
        """To one of the programs, or to the broker."""
        os.kill(self.broker_pid if name == "broker" else self.processes[name].pid, number)

    def status(self) -> dict[str, Any]:
        """The coordinator's; empty while it does not answer."""
        return self.ask("status") or {}
