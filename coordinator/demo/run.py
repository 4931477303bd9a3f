"""One run of the demonstration: its processes, its job, and what is measured afterwards."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import msgspec

from broker.ports import LockHeld, Ports, write_atomic
from coordinator import control, exporting, history, records
from coordinator.cli.output import Failed
from coordinator.config import LOCK, load_config
from coordinator.demo import result
from coordinator.demo.baselines import TASK, Training, measure
from coordinator.demo.children import Children, module
from coordinator.demo.data import CONFIG, FEDERATED, DemoData
from coordinator.demo.progress import Progress
from coordinator.keystore import KeyStore, load_identity
from coordinator.report import gather as report
from coordinator.state import ENDED_JOB, JobState
from coordinator.store import NO_VERSION, Store
from schemas.jobs import JobSpec
from schemas.limits import STOP_S

JOB: Final = "digits"
DEADLINE_S: Final = 120.0  # of a round
ANSWER_DEADLINE_S: Final = 60.0  # for the coordinator to come up
SLOW_CPU_SHARE: Final = 0.2  # the last device: at least five times slower than it could be
POLL_S: Final = 0.2
LOOK_S: Final = 2.0  # between two readings of the log: they take time from the training
AGENT_LOCK: Final = "lock"
HOMES: Final = "devices"  # their state directories, in the demonstration's


def device_name(number: int) -> str:
    """Of the device with this number, from 1."""
    return f"device-{number}"


class Run:
    """The federation of one demonstration's directory."""

    def __init__(
        self, ports: Ports, directory: Path, devices: int, rounds: int, seed: int, progress: Progress
    ) -> None:
        self._ports = ports
        self._directory = directory
        self._devices = devices
        self._rounds = rounds
        self._seed = seed
        self._progress = progress
        self._logs = directory / "logs"
        self._children = Children(ports, self._logs, progress.tell)

    async def train(self, data: DemoData) -> None:
        """Have the job done by processes that end with this. Raises `Failed`."""
        self._ports.files.make_dir(self._logs)
        await self._released(self._directory / LOCK)
        for number in range(1, self._devices + 1):
            self._write_settings(number, data)
            await self._released(self._home(number) / AGENT_LOCK)
        async with asyncio.TaskGroup() as group:
            argv = module("coordinator.cli", "serve", "--dir", str(self._directory))
            coordinator = group.create_task(self._children.keep("coordinator", argv), name="coordinator")
            await self._ask({"op": "status"})
            await self._enrol_all()
            agents = [
                group.create_task(self._children.keep(name, argv), name=name)
                for name, argv in self._agents().items()
            ]
            await self._submit()
            await self._watch()
            for agent in agents:
                agent.cancel()
            await asyncio.wait(agents)
            coordinator.cancel()

    async def conclude(self, data: DemoData) -> dict[str, Any]:
        """Write model, manifest, curves and report; train the baselines; the result. Raises `Failed`."""
        files, directory = self._ports.files, self._directory
        config = load_config(files, directory, os.environ)
        identity = load_identity(files, directory)
        store = Store(files, directory, identity, KeyStore(files, directory, self._ports.entropy))
        found = report.gather(self._ports, directory, JOB, broker=config.broker)
        job, rounds = found.job, found.rounds
        newest = job.versions[-1]
        exporting.export(self._ports, directory, job, newest, directory / result.MODEL)
        before = job.versions[-2].model if len(job.versions) > 1 else NO_VERSION
        manifest = store.offer(JOB, newest.number, newest.model, before, job.epoch).blob
        write_atomic(files, directory / result.MANIFEST, manifest, mode=0o644)
        steps = sum(each.steps for each in found.devices)
        training = Training(
            layout=store.layout(JOB),
            versions=[store.model_path(JOB, version.model) for version in job.versions],
            rounds=self._rounds,
            steps=steps,
            seed=self._seed,
        )
        files.make_dir(directory / "baselines")
        scores = await measure(self._ports, directory / "baselines", data, training)
        await self._ports.offload.run(self._draw, replace(found, comparison=scores))
        return {
            "accuracy": scores.federated[-1],
            "local_only_accuracy": mean(scores.local_only),
            "centralised_accuracy": scores.centralised,
            "rounds": job.rounds_done,
            "devices": self._devices,
            "broker": config.broker,
            "device_urls": config.urls_for_devices(),
            "round_s_median": median([view["round_s"] for view in rounds[1:] or rounds]),
            "round_overhead_s_median": history.overhead_median_s(rounds),
            "round_s": [view["round_s"] for view in rounds],
            "round_train_s": [view["train_s"] for view in rounds],
            "round_overhead_s": [view["overhead_s"] for view in rounds],
            "accuracy_per_round": scores.federated,
            "local_only_accuracies": scores.local_only,
            "samples": data.samples,
            "steps": steps,
            "bytes_up": sum(each.traffic.up_bytes for each in found.devices),
            "bytes_down": sum(each.traffic.down_bytes for each in found.devices),
            "test_digest": data.test_digest,
            "round_1_updates": rounds[0]["updates"],
            "model_digest": newest.model.hex(),
        }

    def _draw(self, found: report.Report) -> None:
        report.require_plots()
        from coordinator.report.page import write

        write_atomic(self._ports.files, self._directory / result.CURVES, result.curves(found), mode=0o644)
        write(self._ports, found, self._directory / result.REPORT)

    def _home(self, number: int) -> Path:
        return self._directory / HOMES / device_name(number)

    def _agents(self) -> dict[str, list[str]]:
        return {
            device_name(number): module("edge_agent.cli", "run", "--dir", str(self._home(number)))
            for number in range(1, self._devices + 1)
        }

    def _write_settings(self, number: int, data: DemoData) -> None:
        """The owner's settings of a device: what it may train, on what."""
        share = SLOW_CPU_SHARE if number == self._devices else 1.0
        path = str(data.train[number - 1].absolute())
        text = (
            f'[policy]\ntasks = ["{TASK}"]\ncpu_share = {share}\ndevice = "cpu"\n\n'
            f"[data]\n{TASK} = {json.dumps(path, ensure_ascii=False)}\n"
        )
        self._ports.files.make_dir(self._home(number))
        write_atomic(self._ports.files, self._home(number) / "agent.toml", text.encode())

    async def _enrol_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(1, self._devices + 1):
                group.create_task(self._enrol(number), name=f"enrol-{number}")

    async def _enrol(self, number: int) -> None:
        """Once per device: a run that was cut off in between goes on with the same token."""
        files, home, name = self._ports.files, self._home(number), device_name(number)
        token, done = home / "token", home / "enrolled"
        if files.exists(done):
            return
        if not files.exists(token):
            answer = await self._ask({"op": "invite", "device": name, "entity": f"owner-{number}"})
            write_atomic(files, token, answer["token"].encode() + b"\n")
        enroll = module("edge_agent.cli", "enroll", "--token-file", str(token), "--dir", str(home))
        await self._children.once(f"enroll-{name}", enroll)
        write_atomic(files, done, b"")
        files.remove(token)
        self._progress.tell(f"{name} enrolled")

    async def _submit(self) -> None:
        if any(view["job"] == JOB for view in await self._ask({"op": "jobs"})):
            return
        spec = JobSpec(
            name=JOB,
            task=TASK,
            config=CONFIG,
            local=FEDERATED,
            rounds=self._rounds,
            cohort=self._devices,
            min_reports=self._devices,
            deadline_s=DEADLINE_S,
            seed=self._seed,
        )
        await self._ask({"op": "submit", "spec": msgspec.to_builtins(spec)})

    async def _watch(self) -> None:
        """Show the job until it has ended. Raises `Failed` unless it finished."""
        clock = self._ports.clock
        rounds: list[history.View] = []
        looked_s = clock.monotonic_s()
        while True:
            job = await self._ask({"op": "job", "job": JOB})
            ended = job["state"] in ENDED_JOB
            if ended or (len(rounds) < job["rounds_done"] and clock.monotonic_s() - looked_s > LOOK_S):
                rounds = await self._ports.offload.run(self._history)
                looked_s = clock.monotonic_s()
            self._progress.show(job, rounds)
            if job["state"] == JobState.FINISHED:
                return
            if ended:
                raise Failed(f"job {JOB} {job['state']}: {job['reason']}; see {self._logs}")
            await asyncio.sleep(POLL_S)

    def _history(self) -> list[history.View]:
        files, directory = self._ports.files, self._directory
        with records.reading(files, directory, load_identity(files, directory).federation) as tables:
            return history.history(tables, JOB)

    async def _ask(self, command: dict[str, Any]) -> Any:
        """The coordinator's answer, once it is up (again). Raises `Failed`."""
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                while True:
                    try:
                        return await control.call(self._directory, command)
                    except (control.NotServing, msgspec.DecodeError):
                        await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise Failed(
                f"the coordinator does not answer; {self._logs / 'coordinator.log'} says why"
            ) from error

    async def _released(self, path: Path) -> None:
        """Wait for a process of a run that was cut off. Raises `Failed`."""
        if not self._ports.files.exists(path):
            return
        deadline_s = self._ports.clock.monotonic_s() + STOP_S + 2
        while True:
            try:
                with self._ports.lock.hold(path):
                    return
            except LockHeld as error:
                if self._ports.clock.monotonic_s() > deadline_s:
                    raise Failed(str(error)) from error
            await asyncio.sleep(POLL_S)
