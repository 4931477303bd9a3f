"""Asynchronous jobs in a pruned log: updates wait for a later version than the one that was open, and
whatever is left can be verified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from broker.bodies import Bodies
from broker.ports import Ports
from coordinator import prune as pruning
from coordinator.config import Config
from coordinator.explain import Reader, explain
from coordinator.history import history
from coordinator.keystore import load_identity
from coordinator.prune import VERSIONS_KEPT, prune
from coordinator.recording import NothingToReplay, Recording
from coordinator.records import reading
from coordinator.recovery import open_whole
from coordinator.rekey.export import export
from coordinator.rekey.updates import Content
from coordinator.replay import replay
from coordinator.state import JobState
from coordinator.verify import verify
from coordinator.whatif import Settings, blame, what_if
from schemas import events as e
from tests.coordinator.pruning import COUNT, HOME, Disk, small_segments
from tests.replay.history import found, spill, unsynced
from tests.sim import virtual_loop
from tests.sim.disk import SimFiles
from tests.sim.machine import sim_ports
from tests.standin import Federation, StandIn, federation, spec

ROUNDS = 28
CUT_MAX = 340  # snapshots that a prune leaves are of later entries


async def train(device: StandIn, seed: int) -> None:
    """Answer every request at once: some updates wait when a buffer is full."""
    rng = np.random.default_rng(seed)
    while True:
        request = await device.next(e.TrainingRequest)
        await device.answer(request, rng.standard_normal(COUNT, dtype=np.float32))


async def until_version(fed: Federation, version: int) -> None:
    await fed.until(lambda: len(fed.job("job").versions) > version)


@asynccontextmanager
async def serving(ports: Ports) -> AsyncIterator[tuple[Federation, asyncio.TaskGroup]]:
    """A coordinator with an asynchronous job, and its devices, which train."""
    server = {"optimiser": "fedavgm", "clip_norm": 5.0, "clip_centre": True, "clip_quantile": 0.5}
    document = spec(
        "job",
        rounds=ROUNDS,
        cohort=2,
        min_reports=2,
        deadline_s=86_400.0,
        update_norm_max=1e3,
        server=server,
        asynchronous={"concurrency": 5},
    )
    async with asyncio.TaskGroup() as tasks, federation(HOME, ports, COUNT) as fed:
        devices = [await fed.device(f"press-{number}") for number in range(5)]
        await fed.command("submit", spec=document)
        training = [tasks.create_task(train(device, seed)) for seed, device in enumerate(devices)]
        yield fed, tasks
        for task in training:
            task.cancel()


@cache
def _recorded() -> Disk:
    ports = sim_ports()

    async def play() -> None:
        with small_segments():
            async with serving(ports) as (fed, _):
                await until_version(fed, ROUNDS - 2)

    virtual_loop.run(play)
    assert isinstance(ports.files, SimFiles)
    return Disk(ports.files)


@pytest.fixture
def disk() -> Disk:
    return deepcopy(_recorded())


def computed(disk: Disk) -> dict[int, str]:
    """The versions that can be computed again, which are as recorded, with their digests."""
    result = replay(disk.ports, HOME)
    assert result["equal"], (result["difference"], result["wrong"])
    assert verify(disk.files, HOME, disk.federation).damage == []
    return {version["version"]: version["computed"] for version in result["jobs"]["job"]}


def test_updates_wait_for_later_buffers_and_are_stale(disk: Disk) -> None:
    waited = [
        commit.fact.version
        for commit in Recording(disk.ports, HOME).commits()
        if any(request.into for request in commit.folded)
    ]
    assert len(waited) > ROUNDS / 2, "or the other tests here show nothing"


def test_it_is_told_which_version_holds_a_stale_update(disk: Disk) -> None:
    reader = Reader(load_identity(disk.files, HOME), Bodies(disk.files, HOME / "bodies"))
    journal, _ = open_whole(disk.files, HOME, disk.federation)
    lines = [line for _, _, line in reader.lines(journal) if line["what"] == "update"]
    held = {
        (request.device, request.number): commit.fact.version
        for commit in Recording(disk.ports, HOME).commits()
        for request in commit.folded
    }
    for line in lines[:40:3]:
        view = explain(reader, journal, line["index"])
        assert view is not None
        assert view["version"]["version"] == held[line["device"], line["request"]]


def test_an_export_of_stale_updates_replays_to_the_bit(disk: Disk, tmp_path: Path) -> None:
    home, told = tmp_path / "home", tmp_path / "told"
    spill(dict(found(disk.files, HOME)), home)
    export(unsynced(), home, told, Config(broker="embedded:20123"), Content.KEEP)
    result = replay(unsynced(), told)
    assert result["equal"], result["difference"]
    (versions,) = result["jobs"].values()
    assert [version["computed"] for version in versions] == list(computed(disk).values())


def test_the_records_of_a_pruned_log_have_every_round_that_is_left(disk: Disk) -> None:
    prune(disk.ports, HOME)
    with reading(disk.files, HOME, disk.federation) as tables:
        views = history(tables, "job")
    assert [view["version"] for view in views][-VERSIONS_KEPT:] == list(computed(disk))[-VERSIONS_KEPT:]
    assert all(len(view["reports"]) == len(view["staleness"]) == 2 for view in views[-VERSIONS_KEPT + 1 :])


def test_the_last_versions_can_be_computed_again(disk: Disk) -> None:
    everything = computed(disk)
    assert prune(disk.ports, HOME).segments > 0
    kept = computed(disk)
    assert len(kept) >= VERSIONS_KEPT
    assert kept == {number: everything[number] for number in list(everything)[-len(kept) :]}


def test_wherever_the_log_is_cut_what_is_left_can_be_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = computed(deepcopy(_recorded()))
    rests = set()
    for cut in range(60, CUT_MAX, 19):
        disk = deepcopy(_recorded())
        monkeypatch.setattr(pruning, "_cut", lambda log, kept, cut=cut: cut)
        prune(disk.ports, HOME)
        left = computed(disk)
        assert left == {number: everything[number] for number in list(everything)[-len(left) :]}
        list(what_if(Recording(disk.ports, HOME), "job", Settings(clip_norm=1.0)))
        rests.add(len(left))
    assert len(rests) > 5, "cuts of all kinds"


def test_nobody_is_blamed_for_a_round_that_was_pruned_in_part(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_cut", lambda log, kept: CUT_MAX)
    prune(disk.ports, HOME)
    commits = Recording(disk.ports, HOME).commits("job")
    rounds = [commit.fact.round for commit in commits if not commit.complete]
    assert rounds
    for number in rounds:
        with pytest.raises(NothingToReplay, match="the log of it was pruned"):
            blame(Recording(disk.ports, HOME), "job", number)


def test_a_coordinator_that_serves_goes_on_after_a_prune_and_a_restart() -> None:
    ports = sim_ports()

    async def play() -> None:
        with small_segments():
            async with serving(ports) as (fed, tasks):
                await until_version(fed, ROUNDS - 4)
                assert prune(ports, HOME).segments > 0
                await fed.restart(tasks)
                await fed.until(lambda: fed.job("job").state is JobState.FINISHED)

    virtual_loop.run(play)
    assert isinstance(ports.files, SimFiles)
    disk = Disk(ports.files)
    assert list(computed(disk))[-1] == ROUNDS
    prune(disk.ports, HOME)
    assert len(computed(disk)) >= VERSIONS_KEPT
