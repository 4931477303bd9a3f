"""Versions evaluated at the coordinator: beside the rounds, the last one for certain, in a worker process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.ports import Ports
from broker.system import system_ports
from coordinator import views
from coordinator.cli.main import main
from coordinator.cli.state import open_journal
from coordinator.entries import Turned, decode_entry
from coordinator.exporting import best_version, find_version
from coordinator.facts import AlarmRaised, AnyFact, VersionEvaluated
from coordinator.keystore import KeyStore, load_identity
from coordinator.prune import prune
from coordinator.recovery import open_recovered
from coordinator.replay import replay
from coordinator.state import JobState
from coordinator.store import Store
from coordinator.verify import verify
from edge_agent.worker import Worker
from schemas import events as e
from schemas import work
from tests.coordinator.pruning import COUNT, HOME, recorded
from tests.replay.doctored import Entries, alter, find, rewrite
from tests.standin import Federation, StandIn, federation, spec
from tests.workers import Answer, maker

Capsys = pytest.CaptureFixture[str]
PATH = "/srv/test.npz"


@dataclass
class Workers:
    """They do not answer while they are ``stuck``; ``asked`` has the models that they were to evaluate."""

    stuck: bool = False
    asked: list[str] = field(default_factory=list)

    def make(self, ports: Ports, count: int) -> Answer:
        answer = maker(ports, count)

        def watched(data: bytes) -> bytes | None:
            order = work.decode_order(data[work.FRAME.size :])
            if isinstance(order, work.Evaluate):
                assert order.whole
                self.asked.append(order.model)
                return b"" if self.stuck else answer(data)
            return answer(data)

        return watched


class Quiet:
    """A parent that stays."""

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        del timeout
        return []


@asynccontextmanager
async def running(
    home: Path, workers: Workers
) -> AsyncIterator[tuple[Federation, StandIn, asyncio.TaskGroup]]:
    async with asyncio.TaskGroup() as tasks, federation(home, system_ports(), make=workers.make) as fed:
        yield fed, await fed.device("d"), tasks


async def train(fed: Federation, device: StandIn, rounds: int, **evaluation: Any) -> None:
    """A job of so many rounds, in each of which every parameter grows by 1."""
    await fed.command("submit", spec=spec(rounds=rounds, evaluation=evaluation))
    for _ in range(rounds):
        request = await device.next(e.TrainingRequest)
        await device.answer(request, np.ones(10, np.float32))
    await device.next(e.JobFinished)


def facts(home: Path) -> list[AnyFact]:
    found: list[AnyFact] = []
    journal = open_journal(home)
    for logged in journal.entries():
        entry = decode_entry(logged.data)
        found += entry.facts if isinstance(entry, Turned) else []
    journal.close()
    return found


def central(home: Path) -> list[VersionEvaluated]:
    found = [fact for fact in facts(home) if isinstance(fact, VersionEvaluated)]
    return [fact for fact in found if fact.source == "central"]


async def measured(fed: Federation, version: int) -> None:
    """Wait until the log holds durably what a version scores."""
    await fed.until(lambda: any(one.version == version for one in central(fed.directory)))


def check(home: Path, fed: Federation) -> None:
    assert replay(system_ports(), home)["equal"]
    assert verify(system_ports().files, home, fed.identity.federation).damage == []


async def test_the_last_version_is_evaluated_and_is_the_best_if_it_is(tmp_path: Path) -> None:
    home = tmp_path / "c"
    async with running(home, Workers()) as (fed, device, _):
        await train(fed, device, 2, dataset=PATH, metric="loss", mode="max")
        await measured(fed, 2)
        progress = fed.job("job").progress
        assert (progress.best, progress.best_score) == (2, 4.0)
    assert central(home)[-1].metrics == {"loss": 4.0}
    check(home, fed)


def test_the_best_version_is_shown_and_exported(tmp_path: Path, capsys: Capsys) -> None:
    home, out, page = tmp_path / "c", tmp_path / "best.safetensors", tmp_path / "job.html"

    async def play() -> None:
        async with running(home, Workers()) as (fed, device, _):
            await train(fed, device, 2, dataset=PATH, metric="loss", alarm_factor=1.5)
            await measured(fed, 2)

    asyncio.run(play())
    capsys.readouterr()
    assert main(["models", "export", "job", str(out), "--best", "--dir", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 0
    assert out.exists()
    assert main(["models", "export", "job", str(out), "--best", "--version", "1", "--dir", str(home)]) == 2
    capsys.readouterr()
    assert main(["jobs", "show", "job", "--dir", str(home)]) == 0
    shown = capsys.readouterr().out
    assert "version 2 at the coordinator: loss 4\n" in shown
    assert "best: version 0, loss 0 (central)" in shown
    assert main(["jobs", "show", "job", "--json", "--dir", str(home)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["evaluation"]["best"] == {"version": 0, "score": 0.0}
    assert told["central"][-1] == {"version": 2, "metrics": {"loss": 4.0}, "problem": ""}
    assert main(["jobs", "report", "job", str(page), "--dir", str(home)]) == 0
    assert "The best one is version 0: loss 0 (central)" in page.read_text()


def test_without_an_evaluation_there_is_no_best_version_to_export(tmp_path: Path, capsys: Capsys) -> None:
    home, out = tmp_path / "c", tmp_path / "best.safetensors"

    async def play() -> None:
        async with running(home, Workers()) as (fed, device, _):
            await fed.command("submit", spec=spec())
            await device.answer(await device.next(e.TrainingRequest), np.ones(10, np.float32))
            await device.next(e.JobFinished)

    asyncio.run(play())
    assert main(["models", "export", "job", str(out), "--best", "--dir", str(home)]) == 1
    assert "has no [evaluation]" in capsys.readouterr().err


async def test_an_evaluation_that_hangs_holds_nothing_up_and_is_done_after_a_restart(tmp_path: Path) -> None:
    home, workers = tmp_path / "c", Workers(stuck=True)
    async with running(home, workers) as (fed, device, tasks):
        await train(fed, device, 3, dataset=PATH, metric="loss")
        assert fed.job("job").state is JobState.FINISHED
        assert len(workers.asked) == 1, "one at a time"
        workers.stuck = False
        await fed.restart(tasks)
        await measured(fed, 3)
        await fed.restart(tasks)
        await fed.until(lambda: fed.coordinator.ledger.journal.count > 0)
    assert [fact.version for fact in central(home)] == [3], "those before it were passed over"
    check(home, fed)


async def test_a_data_set_that_is_missing_is_told_and_the_job_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "c"
    async with running(home, Workers()) as (fed, device, _):
        await train(fed, device, 1, dataset="/missing.npz")
        await measured(fed, 1)
        job = fed.job("job")
        assert (job.state, job.progress.problem) == (JobState.FINISHED, "/missing.npz: no such file")
        view = await fed.command("job", job="job")
        assert view["evaluation"]["problem"] == "/missing.npz: no such file"
    assert all(fact.problem for fact in central(home))
    assert not any(isinstance(fact, AlarmRaised) for fact in facts(home))
    check(home, fed)


def test_the_best_version_is_there_when_its_entries_are_pruned() -> None:
    disk = recorded()
    prune(disk.ports, HOME)
    journal, recovered = open_recovered(disk.files, HOME, disk.federation, read_only=True)
    journal.close()
    best = best_version(recovered.state, "long")
    assert best == 0
    assert replay(disk.ports, HOME)["pruned"]["long"] > 1
    _, version = find_version(recovered.state, "long", best)
    identity = load_identity(disk.files, HOME)
    store = Store(disk.files, HOME, identity, KeyStore(disk.files, HOME, disk.ports.entropy))
    assert store.model("long", version.model) == bytes(4 * COUNT)


async def home_with_alarm(home: Path) -> Federation:
    """A job whose loss grows far beyond its least, at the coordinator."""
    async with running(home, Workers()) as (fed, device, _):
        await train(fed, device, 3, dataset=PATH, metric="accuracy", by="federated", alarm_rises=1)
        await measured(fed, 3)
    return fed


@pytest.mark.parametrize("source", ["central", "federated"])
async def test_a_score_that_was_altered_in_the_log_is_found(tmp_path: Path, source: str) -> None:
    home, files = tmp_path / "c", system_ports().files
    fed = await home_with_alarm(home)

    def doctor(entries: Entries) -> None:
        at = find(entries, VersionEvaluated, lambda one: one.source == source)[0]
        alter(entries, at, VersionEvaluated, metrics={"accuracy": 1.0})

    rewrite(files, home, doctor, receipts=True)
    found = [str(one) for one in verify(files, home, fed.identity.federation).damage]
    assert "version-evaluated" in found[0] or "the updates tell" in found[0]
    assert not replay(system_ports(), home)["equal"]


async def test_an_alarm_is_shown_by_status_while_the_job_runs(tmp_path: Path) -> None:
    async with running(tmp_path / "c", Workers()) as (fed, device, _):
        await fed.command("submit", spec=spec(rounds=9, evaluation={"dataset": PATH, "alarm_rises": 1}))
        for _ in range(2):
            request = await device.next(e.TrainingRequest)
            await device.answer(request, np.ones(10, np.float32))
        await fed.until(
            lambda: any(one["kind"] == "rising" for one in views.alarms(fed.coordinator.ledger.state))
        )
        found = (await fed.command("status"))["alarms"]
        assert {"job": "job", "by": "central"}.items() <= found[-1].items()
        await fed.command("cancel", job="job")
        assert (await fed.command("status"))["alarms"] == []


async def test_a_real_worker_measures_a_version_on_all_of_the_data_set(tmp_path: Path) -> None:
    path = tmp_path / "pumps.csv"
    path.write_text("heat,state\n" + "1,0\n2,1\n" * 10)

    def make(ports: Ports, count: int) -> Answer:
        worker = Worker(ports, Quiet())
        return lambda data: work.encode(worker.carry_out(work.decode_order(data[work.FRAME.size :])))

    async with federation(tmp_path / "c", system_ports(), make=make) as fed:
        await fed.device("d")  # by then it serves
        config = {"columns": ["heat"], "label": "state", "classes": 2, "hidden": []}
        job = {"name": "job", "task": "tabular", "config": config, "evaluation": {"dataset": str(path)}}
        await fed.command("submit", spec=job)
        await measured(fed, 0)
        assert fed.job("job").progress.problem == ""
        assert fed.job("job").progress.best == 0
    (found,) = central(tmp_path / "c")
    assert found.metrics["samples"] == 20
    assert {"accuracy", "loss"} <= found.metrics.keys()
