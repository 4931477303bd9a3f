"""A job whose rounds are made by a rule over all updates: its versions, restarts, replay, and what if."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace as replace_field
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from broker.ports import Ports
from coordinator import blockwise, history, records
from coordinator.cli.show import LEANING_SHOWN, _leaning
from coordinator.config import Config
from coordinator.facts import Leaning
from coordinator.keystore import load_identity
from coordinator.recording import Commit, NothingToReplay, Recording
from coordinator.rekey.export import export
from coordinator.rekey.updates import Content
from coordinator.replay import Refold, replay
from coordinator.strategies.robust import PIECE
from coordinator.whatif import Settings, blame, what_if
from schemas import events as e
from schemas.jobs import ServerSettings
from tests.replay.history import found, spill, unsynced
from tests.sim import virtual_loop
from tests.sim.machine import SimOffload, sim_ports
from tests.standin import Federation, StandIn, federation, spec

HOME = Path("/c")
ROUNDS: Final = 2
NAMES: Final = tuple(f"d{number}" for number in range(6))
INLINE, CHUNKED = 8, 40_000  # coordinates: 160 kB are three chunks of 64 KiB
RULES: list[dict[str, Any]] = [
    {"aggregation": "median"},
    {"aggregation": "trimmed_mean", "trim": 0.2, "optimiser": "fedavgm"},
    {"aggregation": "multi_krum", "byzantine": 1, "clip_norm": 1.0},
]
P = ParamSpec("P")
R = TypeVar("R")
Floats = NDArray[np.float32]
Between = Callable[[Federation, asyncio.TaskGroup], Awaitable[None]]


def delta(device: str, round_: int, count: int) -> Floats:
    rng = np.random.default_rng([round_, int(device[1:])])
    size = 50.0 if device == "d3" else 1.0
    return (1.0 + size * rng.standard_normal(count, dtype=np.float32)) / np.float32(count)


async def play_round(devices: list[StandIn], round_: int, count: int) -> None:
    for device in devices:
        request = await device.next(e.TrainingRequest)
        await device.answer(request, delta(device.id, round_, count), samples=3)
        await device.next(e.Verdict)


async def nothing(fed: Federation, tasks: asyncio.TaskGroup) -> None:
    pass


async def killed(fed: Federation, tasks: asyncio.TaskGroup) -> None:
    await fed.restart(tasks)


def recorded(server: dict[str, Any], count: int = INLINE, midway: Between = nothing) -> Ports:
    """``midway`` happens in the second round, with half of the updates folded."""
    ports = sim_ports()

    async def play() -> None:
        async with asyncio.TaskGroup() as tasks, federation(HOME, ports, count) as fed:
            devices = [await fed.device(name) for name in NAMES]
            told = spec(rounds=ROUNDS, cohort=6, min_reports=6, chunk_bytes=65_536, server=server)
            await fed.command("submit", spec=told)
            await play_round(devices, 1, count)
            await play_round(devices[:3], 2, count)
            await midway(fed, tasks)
            await play_round(devices[3:], 2, count)
            await devices[0].next(e.JobFinished)

    virtual_loop.run(play)
    return ports


def models(ports: Ports, count: int) -> list[Floats]:
    recording = Recording(ports, HOME)
    digests = [commit.fact.model for commit in recording.commits("job")]
    return [np.frombuffer(recording.store.model("job", digest), "<f4", count) for digest in digests]


@pytest.mark.parametrize("count", [INLINE, CHUNKED])
def test_each_version_moves_by_the_median_of_the_updates(count: int) -> None:
    versions = models(recorded({"aggregation": "median"}, count), count)
    for round_ in range(1, ROUNDS + 1):
        changes = [delta(name, round_, count).astype(np.float64) for name in NAMES]
        wanted = (versions[round_ - 1] + np.median(changes, axis=0)).astype(np.float32)
        assert versions[round_].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("server", RULES)
@pytest.mark.parametrize("count", [INLINE, CHUNKED])
def test_a_recording_replays_to_the_bit(server: dict[str, Any], count: int) -> None:
    result = replay(recorded(server, count), HOME)
    assert result["equal"], result["difference"]
    assert [version["updates"] for version in result["jobs"]["job"]] == [0, 6, 6]


@pytest.mark.parametrize("server", RULES)
def test_a_kill_in_the_middle_of_a_round_changes_no_bit(server: dict[str, Any]) -> None:
    whole, torn = (models(recorded(server, CHUNKED, midway), CHUNKED) for midway in (nothing, killed))
    assert [model.tobytes() for model in torn] == [model.tobytes() for model in whole]


@pytest.mark.parametrize("server", RULES)
def test_smaller_blocks_give_the_same_models(server: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = models(recorded(server, CHUNKED), CHUNKED)
    monkeypatch.setattr(blockwise, "HELD_BYTES_MAX", 6 * 4 * 4 * PIECE)
    parted = models(recorded(server, CHUNKED), CHUNKED)
    assert [model.tobytes() for model in parted] == [model.tobytes() for model in whole]


@pytest.mark.parametrize("server", RULES)
def test_what_if_a_round_had_been_made_by_the_rule_is_what_the_rule_makes(server: dict[str, Any]) -> None:
    ports = recorded({"aggregation": "mean"})
    rule = Settings(server=ServerSettings(aggregation=server["aggregation"], byzantine=1))
    told = list(what_if(Recording(ports, HOME), "job", rule))
    wanted = models(recorded({"aggregation": server["aggregation"], "byzantine": 1}), INLINE)
    assert told[1].other == wanted[1].tobytes()
    assert told[1].row["distance"] > 0


def test_what_if_with_too_few_left_names_the_rule_and_the_remedy() -> None:
    ports = recorded({"aggregation": "mean"})
    rule = Settings(server=ServerSettings(aggregation="multi_krum", byzantine=2))
    with pytest.raises(NothingToReplay, match=r"6 updates .* multi_krum needs 7: lower trim or byzantine"):
        list(what_if(Recording(ports, HOME), "job", rule))


def test_blame_says_that_it_follows_from_a_mean_only() -> None:
    with pytest.raises(NothingToReplay, match=r"rounds by median.*leave_out"):
        blame(Recording(recorded({"aggregation": "median"}), HOME), "job", 1)


def leanings(ports: Ports) -> list[list[Leaning]]:
    return [commit.fact.leanings for commit in Recording(ports, HOME).commits("job")]


def test_a_version_records_how_each_update_leans_and_which_were_left_out() -> None:
    ports = recorded(RULES[2])
    first, *rounds = leanings(ports)
    assert first == []
    versions = models(ports, INLINE)
    for round_, told in enumerate(rounds, 1):
        step = versions[round_].astype(np.float64) - versions[round_ - 1]
        assert [each.device for each in told] == list(NAMES)
        assert [each.device for each in told if not each.counted] == ["d3"]
        for each in told:
            change = delta(each.device, round_, INLINE).astype(np.float64)
            wanted = float(change @ step) / float(np.linalg.norm(change) * np.linalg.norm(step))
            assert each.cosine == pytest.approx(wanted, abs=1e-4)


def test_a_mean_records_none() -> None:
    assert leanings(recorded({})) == [[], [], []]


def test_records_and_show_tell_them() -> None:
    ports = recorded(RULES[2])
    federation = load_identity(ports.files, HOME).federation
    with records.reading(ports.files, HOME, federation) as tables:
        rounds = history.history(tables, "job")
    assert [round_["left_out"] for round_ in rounds] == [["d3"]] * ROUNDS
    assert [list(round_["cosines"]) for round_ in rounds] == [list(NAMES)] * ROUNDS
    told = list(_leaning(rounds))
    assert len(told) == LEANING_SHOWN
    (line,) = [line for line in told if line.endswith("rounds: 2, left out of 2")]
    assert line.startswith("d3: mean cosine")


def test_a_recorded_cosine_that_is_not_the_computed_one_is_found() -> None:
    ports = recorded({"aggregation": "median"})
    recording = Recording(ports, HOME)
    refold = Refold(recording, "job")
    for commit in recording.commits("job"):
        turned = [replace(each, cosine=-each.cosine) for each in commit.fact.leanings]
        refold.version(Commit(replace(commit.fact, leanings=turned), commit.entry, commit.job))
    assert [version["equal"] for version in refold.versions] == [True, False, False]


def test_an_export_of_it_replays_to_the_bit_and_names_nobody(tmp_path: Path) -> None:
    home, told = tmp_path / "home", tmp_path / "told"
    spill(dict(found(recorded(RULES[2]).files, HOME)), home)
    export(unsynced(), home, told, Config(broker="embedded:20123"), Content.KEEP)
    result = replay(unsynced(), told)
    assert result["equal"], result["difference"]
    names = [each.device for commit in Recording(unsynced(), told).commits() for each in commit.fact.leanings]
    assert len(names) == ROUNDS * len(NAMES)
    assert not set(names) & set(NAMES)


class Meanwhile(SimOffload):
    """A thread is free for a version only after something else happened."""

    def __init__(self) -> None:
        self.happens: Callable[[], Awaitable[object]] | None = None

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self.happens and function.__name__ == "_finish":
            await self.happens()
        return await super().run(function, *args, **kwargs)


@pytest.mark.parametrize("server", RULES)
def test_a_job_that_is_cancelled_while_its_version_waits_for_a_thread_ends(server: dict[str, Any]) -> None:
    offload = Meanwhile()
    ports = replace_field(sim_ports(), offload=offload)

    async def play() -> None:
        async with federation(HOME, ports, INLINE) as fed:
            devices = [await fed.device(name) for name in NAMES]
            offload.happens = lambda: fed.command("cancel", job="job")
            await fed.command("submit", spec=spec(cohort=6, min_reports=6, server=server))
            await play_round(devices, 1, INLINE)
            await devices[0].next(e.JobFinished)
            await fed.command("submit", spec=spec("other"))
            await devices[0].next(e.TrainingRequest)

    virtual_loop.run(play)
