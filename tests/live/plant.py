"""A small federation at work at a real broker, for tests that bring it trouble.

Coordinator and devices run in the test's own process: they stop at any moment, and their log is pytest's. Our
programs can take their places, on the same directories.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from broker.amqp import QUEUE_ARGUMENTS
from broker.bus import Bus
from broker.ports import Ports
from broker.system import system_ports
from broker.worker import with_our_packages
from coordinator.config import Config
from coordinator.state import JobState
from edge_agent.ledger import RequestState
from schemas import topics
from schemas.ids import COORDINATOR, broker_user
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN
from tests.brokers import Admit, Mosquitto, RabbitMQ
from tests.residents import Resident, check_each_counted_once
from tests.standin import Federation, spec

DEVICES = ("press-07", "press-08")
SPARE = "press-09"
ROUNDS = 2
CHUNKED = 40_000
"""So many parameters travel in three chunks."""
INLINE = 5_000
"""So many travel inside the update's message."""
PATIENCE_S = 60.0


class Program:
    """One of our programs as a process. Leaving the context ends it."""

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        self._argv = [sys.executable, "-P", "-m", module, *arguments]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._argv,
                env=with_our_packages(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    @property
    def said(self) -> str:
        """Its output and its log, so far."""
        return self._log.read_text()

    async def says(self, *parts: str) -> None:
        """Wait until all of these are in it."""
        try:
            await until(lambda: all(part in self.said for part in parts))
        except TimeoutError as error:
            raise AssertionError(f"not said: {[part for part in parts if part not in self.said]}") from error

    async def fails(self) -> str:
        """The one line with which it ends by itself, with status 1."""
        assert self._process is not None
        process = self._process
        await until(lambda: process.poll() is not None)
        assert process.returncode == 1, self.said
        assert "Traceback" not in self.said
        return self.said.splitlines()[-1]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what sets no event."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Door:
    """The way to a broker: addresses for the coordinator and for devices, and the users that were let in."""

    def __init__(self, config: Config, admit: Admit) -> None:
        self.config = config
        self._admit = admit
        self._users: dict[str, dict[str, Any]] = {}

    def admit(self, user: str, password: str, publish: Sequence[str], subscribe: Sequence[str]) -> None:
        self._users[user] = {"password": password, "publish": publish, "subscribe": subscribe}
        self.restore(user)

    def change(self, user: str, **rights: Any) -> None:
        """Give a user another password, or less to do, until `restore`."""
        self._admit(user, **self._users[user] | rights)

    def restore(self, user: str) -> None:
        self._admit(user, **self._users[user])


def mosquitto_door(broker: Mosquitto) -> Door:
    return Door(Config(broker=f"mqtt://127.0.0.1:{broker.port}"), broker.admit)


def rabbitmq_door(
    node: RabbitMQ,
    coordinator: str = "amqp",
    devices: str = "mqtt",
    queue: Mapping[str, str | int] = QUEUE_ARGUMENTS,
) -> Door:
    """The two speak these protocols; queues have these arguments."""
    urls = {"amqp": f"amqp://127.0.0.1:{node.amqp}", "mqtt": f"mqtt://127.0.0.1:{node.mqtt}"}

    def admit(user: str, password: str, publish: Sequence[str], subscribe: Sequence[str]) -> None:
        node.operator.admit(user, password, publish, subscribe)
        if (coordinator if user.startswith(COORDINATOR) else devices) == "amqp":
            node.operator.declare(user, queue)

    return Door(Config(broker=urls[coordinator], device_urls=[urls[devices]]), admit)


class Plant:
    """A coordinator and enrolled devices, with a job for all of them. A `SPARE` device is enrolled, too: it
    is for our programs, and trains nothing."""

    def __init__(
        self,
        directory: Path,
        door: Door,
        *,
        count: int = CHUNKED,
        rounds: int = ROUNDS,
        devices: Sequence[str] = DEVICES,
        ports: Ports | None = None,
        device_ports: Ports | None = None,
        around: Callable[[Bus], Bus] = lambda bus: bus,
    ) -> None:
        self.rounds = rounds
        self.federation = Federation(
            directory / "fed",
            ports or system_ports(),
            count,
            config=door.config,
            admit=door.admit,
            around=around,
        )
        self.residents = [Resident(self.federation, name, count, device_ports) for name in devices]
        self.spare = Resident(self.federation, SPARE, count)
        self._agents: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self.federation.start(self._tasks)
        for resident in (*self.residents, self.spare):
            await resident.enrol()
        self.start_agents()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop_agents()
        await self.federation.stop()
        await self._tasks.__aexit__(exc_type, exc, traceback)

    @property
    def session(self) -> str:
        """The coordinator's name at the broker."""
        return broker_user(self.federation.identity.federation, COORDINATOR)

    def up(self, device: Resident) -> str:
        """Where a device speaks."""
        return topics.up(self.federation.identity.federation, device.id)

    def down(self, device: Resident) -> str:
        """Where it listens."""
        return topics.down(self.federation.identity.federation, device.id)

    def start_agents(self) -> None:
        self._agents = [
            self._tasks.create_task(resident.run(), name=resident.name) for resident in self.residents
        ]

    async def stop_agents(self) -> None:
        """As killed processes."""
        for agent in self._agents:
            agent.cancel()
        if self._agents:
            await asyncio.wait(self._agents)
        self._agents = []

    async def restart(self) -> None:
        """The coordinator, stopped or not."""
        await self.federation.restart(self._tasks)

    async def submit(self, **fields: Any) -> None:
        """The job, for all devices."""
        wanted: dict[str, Any] = {
            "rounds": self.rounds,
            "cohort": len(self.residents),
            "min_reports": len(self.residents),
        }
        usual: dict[str, Any] = {
            "chunk_bytes": CHUNK_BYTES_CHOSEN_MIN,
            "deadline_s": 3_600.0,
            "update_norm_max": 1e9,
        }
        await self.federation.command("submit", spec=spec(**wanted, **usual) | fields)

    async def train(self) -> None:
        """Submit the job; returns once all devices are about to train. They wait for `go_on`."""
        for resident in self.residents:
            resident.may_train.clear()
        await self.submit()
        async with asyncio.timeout(PATIENCE_S):
            for resident in self.residents:
                await resident.training.wait()

    def go_on(self) -> None:
        """Let the devices train."""
        for resident in self.residents:
            resident.may_train.set()

    async def made(self) -> None:
        """Wait until every device has an update for its newest request."""
        await until(lambda: all(_newest(resident) is RequestState.MADE for resident in self.residents))

    async def problem(self, part: str) -> str:
        """Wait until the coordinator's status says this of its broker (nothing, if empty); what it says."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = str((await self.federation.command("status"))["broker_problem"])
                if part in told if part else not told:
                    return told
                await asyncio.sleep(0.01)

    def finished(self) -> bool:
        records = [record for resident in self.residents for record in resident.ledger().requests]
        done = all(record.state is RequestState.RECEIPTED for record in records)
        return done and self.federation.job("job").state is JobState.FINISHED

    async def finish(self) -> None:
        """Until the job is over and each update was counted once."""
        await until(self.finished)
        await self.stop_agents()
        await self.federation.stop()
        check_each_counted_once(self.federation.directory, self.residents, self.rounds)

    def serve(self) -> Program:
        """``fedbus-coordinator serve`` in the place of the coordinator, which was stopped."""
        home = self.federation.directory
        return Program("coordinator.cli", "serve", "--dir", str(home), log=home.with_suffix(".log"))

    def agent(self) -> Program:
        """``fedbus-agent run`` of the spare device."""
        home = self.spare.directory
        return Program("edge_agent.cli", "run", "--dir", str(home), log=home.with_suffix(".log"))

    async def ask(self, module: str, *arguments: str) -> str:
        """What one of our programs says, however it ends; the agent's is that of the spare device."""
        home = self.federation.directory if module.startswith("coord") else self.spare.directory
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", module, *arguments, "--dir", str(home),
            env=with_our_packages(os.environ), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE_S):
            said, _ = await program.communicate()
        assert b"Traceback" not in said
        return said.decode()


def _newest(resident: Resident) -> RequestState:
    return resident.ledger().requests[-1].state
