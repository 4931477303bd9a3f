"""Recorded requests, put to an agent under test: what it answers otherwise stands in the report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from broker.memory import MemoryBroker, MemoryBus
from broker.ports import Ports
from coordinator.config import Config
from coordinator.onto import OntoRefused
from coordinator.onto.ask import ask_agent
from coordinator.onto.questions import read_questions
from coordinator.onto.report import Report
from coordinator.onto.source import Source
from coordinator.rekey.export import export
from coordinator.state import JobState
from edge_agent import identity as identities
from edge_agent.app import Agent
from edge_agent.config import Config as AgentConfig
from edge_agent.config import Policy
from edge_agent.encoder import encode_delta
from edge_agent.sealer import open_model, seal_update
from schemas import work
from schemas.encodings import FLOAT32
from schemas.events import Update, Vector
from schemas.models import DELTA
from tests.replay.history import record, unsynced
from tests.residents import Resident
from tests.sim import virtual_loop
from tests.sim.machine import SimProcess, SimSpawn, sim_ports
from tests.standin import IN_MEMORY, Dial, Federation, federation, spec
from tests.workers import Answer

DATASET = "dataset-1"  # as exports name it
NAMES = ("press-07", "press-08")
ROUNDS = 3
SMALL, CHUNKED = 10, 40_000


def trains(ports: Ports, count: int, factor: float = 1.0, cut: int = 0, **says: Any) -> Answer:
    """A worker whose update follows from what it is asked; times ``factor``, ``cut`` bytes short, and with
    what it ``says`` otherwise."""

    def answer(data: bytes) -> bytes | None:
        order = work.decode_order(data[work.FRAME.size :])
        assert isinstance(order, work.Train)
        model = np.frombuffer(open_model(ports.files, order), "<f4")
        drawn = np.random.default_rng(order.local.seed).standard_normal(count, dtype=np.float32)
        change = bytearray(((drawn - model) * np.float32(factor)).astype("<f4").tobytes())
        delta = encode_delta(ports.files, order, memoryview(change))
        delta = delta[: len(delta) - cut]
        update = Update(
            job=order.manifest.job,
            request=order.request,
            base=order.manifest.model,
            vectors=[Vector(DELTA, count)],
            samples=7,
            steps=1,
            train_s=0.0,
            metrics={},
            evaluation={},
            content=sha256(delta).digest(),
            encoding=order.encoding if order.encoding != FLOAT32 else msgspec.UNSET,
        )
        sealed = seal_update(ports, order, with_fields(update, **says), delta)
        trained = work.Trained(
            clear=sealed.clear, seal=sealed.seal, samples=7, steps=1, train_s=0.0, metrics={}, evaluation={}
        )
        return work.encode(trained)

    return answer


class Build:
    """An agent build, on a device of a recording."""

    def __init__(self, ports: Ports, folder: Path, train: Callable[[Ports], Answer], task: str) -> None:
        self.folder = folder
        self._task = task
        self._ports = replace(ports, spawn=SimSpawn(lambda argv, env: SimProcess(train(self._ports))))
        (folder / "data").write_bytes(b"data")

    async def run(self, dial: Dial) -> None:
        own = identities.load(self._ports.files, self.folder)
        bus = dial(IN_MEMORY.broker, own.credentials(), [own.down_topic])
        policy = Policy(tasks=[self._task])
        config = AgentConfig(policy=policy, data={DATASET: str(self.folder / "data")})
        await Agent(self.folder, config, self._ports, bus, own, installed=lambda: [self._task]).run()


class Trainee(Resident):
    """Whose worker is `trains`."""

    def __init__(self, fed: Federation, name: str, count: int) -> None:
        super().__init__(fed, name, count)
        spawn = SimSpawn(lambda argv, env: SimProcess(trains(fed.ports, count)))
        self._ports = replace(fed.ports, spawn=spawn)


def recorded(tmp_path: Path, count: int, up: str = "float32") -> tuple[Path, Ports]:
    """An export of a few rounds by real agents."""
    files = unsynced().files
    ports = replace(sim_ports(), files=files)
    home, told = tmp_path / "home", tmp_path / "told"

    async def play() -> None:
        async with asyncio.TaskGroup() as tasks, federation(home, ports, count) as fed:
            residents = [Trainee(fed, name, count) for name in NAMES]
            running = []
            for resident in residents:
                await resident.enrol()
                running.append(tasks.create_task(resident.run(), name=resident.name))
            await fed.command(
                "submit", spec=spec(rounds=ROUNDS, cohort=2, min_reports=2, compression={"up": up})
            )
            await fed.until(lambda: fed.job("job").state is JobState.FINISHED)
            for task in running:
                task.cancel()

    virtual_loop.run(play)
    export(ports, home, told, Config(broker=IN_MEMORY.broker))
    return told, replace(sim_ports(seed=1), files=files)


def asked(told: Path, ports: Ports, build: Build, speed: float = float("inf")) -> Report:
    """What the report says of the build, on a virtual clock."""
    reports = []

    async def play() -> None:
        source = Source(ports, told)
        fed = Federation(told.with_name("unused"), ports, SMALL)  # its broker, no coordinator
        async with asyncio.TaskGroup() as tasks:
            agent = tasks.create_task(build.run(fed.dial), name="agent")
            reports.append(
                await ask_agent(ports, source, partial(fed.dial, IN_MEMORY.broker), speed, "device-1")
            )
            agent.cancel()
        fed.coordinator.ledger.journal.close()
        source.close()

    virtual_loop.run(play)
    return reports[0]


@pytest.mark.parametrize("count", [SMALL, CHUNKED])
def test_a_build_that_trains_as_the_recorded_one_gives_no_differing_answer(
    tmp_path: Path, count: int
) -> None:
    told, ports = recorded(tmp_path, count)
    build = Build(ports, told / "devices" / "device-1", lambda own: trains(own, count), "task-1")
    document = asked(told, ports, build).document()
    assert document["equal"], document
    assert (document["updates"], document["accepted"], document["declined"]) == (ROUNDS, ROUNDS, {})


@pytest.mark.parametrize("up", ["eden2", "topk"])
def test_a_build_that_encodes_as_the_recorded_one_gives_no_differing_answer(tmp_path: Path, up: str) -> None:
    told, ports = recorded(tmp_path, CHUNKED, up)
    build = Build(ports, told / "devices" / "device-1", lambda own: trains(own, CHUNKED), "task-1")
    document = asked(told, ports, build).document()
    assert document["equal"], document
    assert document["accepted"] == ROUNDS


def test_how_far_encoded_updates_are_apart_is_told_of_what_they_stand_for(tmp_path: Path) -> None:
    told, ports = recorded(tmp_path, CHUNKED, "eden4")
    build = Build(ports, told / "devices" / "device-1", lambda own: trains(own, CHUNKED, 1.5), "task-1")
    for row in asked(told, ports, build).differing:
        assert row["relative"] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("count", [SMALL, CHUNKED])
def test_a_build_with_a_bug_is_told_of_round_by_round(tmp_path: Path, count: int) -> None:
    told, ports = recorded(tmp_path, count)
    build = Build(ports, told / "devices" / "device-1", lambda own: trains(own, count, 1.01), "task-1")
    report = asked(told, ports, build)
    assert not report.equal
    assert [(row["round"], row["what"]) for row in report.differing] == [
        (number, "update") for number in range(1, ROUNDS + 1)
    ]
    for row in report.differing:
        assert row["relative"] == pytest.approx(0.01, rel=1e-3)
        assert row["recorded"] != row["played"]
        assert row["max"] > 0


@pytest.mark.parametrize("count", [SMALL, CHUNKED])
def test_a_build_whose_updates_are_cut_short_is_told_of(tmp_path: Path, count: int) -> None:
    told, ports = recorded(tmp_path, count)
    build = Build(ports, told / "devices" / "device-1", lambda own: trains(own, count, cut=4), "task-1")
    report = asked(told, ports, build)
    assert report.stopped == ""
    assert [row["what"] for row in report.differing] == ["answer"] * ROUNDS
    assert report.rejected == {"malformed": ROUNDS}


@pytest.mark.parametrize(
    ("field", "recorded_as", "says"),
    [
        ("steps", 1, 2),
        ("samples", 7, 8),
        ("request", None, 99),
        ("base", None, bytes(32)),
        ("job", "job-1", "job-2"),
        ("content", None, bytes(32)),
        ("vectors", None, [Vector("other", SMALL)]),
    ],
)
def test_a_build_whose_updates_say_something_else_is_told_of(
    tmp_path: Path, field: str, recorded_as: object, says: object
) -> None:
    told, ports = recorded(tmp_path, SMALL)
    folder, said = told / "devices" / "device-1", dict[str, Any]({field: says})
    build = Build(ports, folder, lambda own: trains(own, SMALL, **said), "task-1")
    report = asked(told, ports, build)
    assert [row["what"] for row in report.differing] == [field] * ROUNDS
    row = report.differing[0]
    json.dumps(report.document())
    assert recorded_as is None or (row["recorded"], row["played"]) == (recorded_as, says)


def test_a_build_that_declines_what_was_trained_is_told_of(tmp_path: Path) -> None:
    told, ports = recorded(tmp_path, SMALL)
    build = Build(ports, told / "devices" / "device-1", lambda own: trains(own, SMALL), "task-2")
    report = asked(told, ports, build)
    assert report.declined == {"policy": ROUNDS}
    assert [(row["recorded"], row["played"]) for row in report.differing] == [
        ("update", "decline: policy")
    ] * ROUNDS


def test_a_build_is_asked_what_was_answered_with_rubbish_or_not_at_all_too(tmp_path: Path) -> None:
    """In a long history: an update of NaN, one that nothing opens, declines and silence."""
    home, told = record(tmp_path / "home"), tmp_path / "told"
    export(unsynced(), home, told, Config(broker=IN_MEMORY.broker))
    ports = replace(sim_ports(seed=1), files=unsynced().files)
    build = Build(ports, told / "devices" / "device-1", lambda own: trains(own, SMALL), "task-1")
    report = asked(told, ports, build)
    with closing(Source(ports, told)) as source:
        assert report.played == len(read_questions(source, "device-1"))
    assert report.stopped == ""
    assert "unreadable" in {row["recorded"] for row in report.differing}


def test_without_an_agent_it_ends_and_names_the_device(tmp_path: Path) -> None:
    told, ports = recorded(tmp_path, SMALL)
    reports = []

    async def play() -> None:
        source = Source(ports, told)
        broker = MemoryBroker()
        reports.append(
            await ask_agent(
                ports, source, lambda who, topics: MemoryBus(broker, who, topics), 1.0, "device-2"
            )
        )
        source.close()

    virtual_loop.run(play)
    assert reports[0].stopped.startswith("device-2: no answer to the request of round 1 within 60 s")
    assert not reports[0].equal


def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    told, ports = recorded(tmp_path, SMALL)
    source = Source(ports, told)
    with pytest.raises(OntoRefused, match="its devices: device-1, device-2"):
        source.device("press-07")
    source.close()
