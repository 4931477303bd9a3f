"""A recording's devices, played to a staging coordinator: the same verdicts, the same last digest."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from coordinator import rounds, works
from coordinator.fold import Folder
from coordinator.looking import Looked, look_beside
from coordinator.onto import OntoRefused
from coordinator.onto.play import play_devices
from coordinator.onto.source import Source
from coordinator.onto.stage import stage
from coordinator.rekey.export import export
from coordinator.rekey.updates import Content
from coordinator.replay import replay
from coordinator.state import DeviceState, Job, State
from coordinator.strategies import Weight
from coordinator.verify import verify
from schemas import events as e
from tests.coordinator.onto_stories import (
    CONFIG,
    MAX,
    Story,
    adaptive,
    chance,
    confused,
    crowded,
    drawn,
    played,
    told_of,
    unended,
)
from tests.replay.history import COUNT, record, unsynced
from tests.sim import virtual_loop
from tests.standin import IN_MEMORY, Federation, federation, spec

CHUNKED: Final = 3_000  # parameters: three chunks of the smallest size


@pytest.mark.parametrize("count", [COUNT, CHUNKED])
def test_a_long_history_played_again_ends_with_the_recorded_digest(tmp_path: Path, count: int) -> None:
    told, ports = told_of(tmp_path, count=count)
    report, _ = played(told, ports, count=count)
    document = report.document()
    assert document["equal"], document
    assert (document["updates"], document["accepted"]) == (16, 12)
    assert document["rejected"] == {"finite": 1, "late": 1, "layout": 1, "malformed": 1}
    assert document["declined"] == {"as recorded": 1, "no answer was recorded": 4}
    assert document["final"]["version"] == 6
    begun, recorded = (replay(ports, folder)["jobs"]["job-1"] for folder in (told.with_name("begun"), told))
    assert [one["computed"] for one in begun] == [one["recorded"] for one in recorded]


def test_a_job_with_a_server_optimiser_leads_to_the_recorded_digest(tmp_path: Path) -> None:
    told, ports = told_of(tmp_path, adaptive)
    report, _ = played(told, ports)
    assert report.equal, report.document()
    assert (report.accepted, report.final and report.final["version"]) == (6, 3)
    begun, recorded = (replay(ports, folder)["jobs"]["job-1"] for folder in (told.with_name("begun"), told))
    assert [one["computed"] for one in begun] == [one["recorded"] for one in recorded]


def test_a_staged_coordinator_is_whole_and_at_version_0(tmp_path: Path) -> None:
    told, ports = told_of(tmp_path)
    begun = tmp_path / "begun"
    assert stage(ports, told, begun, CONFIG) == "job-1"
    source = Source(ports, told)
    source.close()
    assert verify(ports.files, begun, source.identity.federation).damage == []
    assert [one["version"] for one in replay(ports, begun)["jobs"]["job-1"]] == [0]
    assert not (begun / "keys" / "requests").exists()
    with pytest.raises(OntoRefused, match="exists already"):
        stage(ports, told, begun, CONFIG)


def test_the_recorded_devices_are_asked_though_an_export_has_other_names_to_draw_from(tmp_path: Path) -> None:
    report, _ = played(*told_of(tmp_path, drawn))
    assert report.equal, report.document()
    assert report.accepted == 8
    assert report.rejected == {"late": 4}


def test_gaps_are_scaled(tmp_path: Path) -> None:
    told, ports = told_of(tmp_path, drawn)
    spans = []
    for speed in (1.0, 10.0):
        report, span_s = played(told, ports, speed)
        assert report.equal
        spans.append(span_s)
        ports.files.remove(told.with_name("begun"))
    assert 11 < spans[0] < 16
    assert 1.1 < spans[1] < 2.5


def test_a_build_that_folds_otherwise_is_found_in_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, ports = told_of(tmp_path, drawn)
    add = Folder.add
    monkeypatch.setattr(Folder, "add", lambda self, given: add(self, Weight(given.samples + self.folded)))
    report, _ = played(told, ports)
    assert not report.equal
    assert [(row["round"], row["what"]) for row in report.differing] == [(n, "base") for n in (2, 3, 4)]
    assert report.final is not None
    assert not report.final["equal"]


def test_a_build_that_rejects_what_was_folded_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def two_rounds(fed: Federation) -> None:
        device = await fed.device("press-07")
        await fed.command("submit", spec=spec(rounds=2, deadline_s=60.0))
        for _ in range(2):
            await device.answer(await device.next(e.TrainingRequest), np.ones(COUNT, np.float32))
            await device.next(e.Verdict)
        await device.next(e.JobFinished)

    told, ports = told_of(tmp_path, two_rounds)

    async def rejects(*_: object) -> Looked:
        return Looked(problem="norm: too odd")

    monkeypatch.setattr(works, "look_beside", rejects)
    report, _ = played(told, ports)
    assert report.differing == [
        {"round": 1, "device": "device-1", "what": "verdict", "recorded": "folded", "played": "norm: too odd"}
    ]
    assert "no request for round 2" in report.stopped
    assert "device-1" in report.stopped


def test_a_build_that_rejects_for_another_reason_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, ports = told_of(tmp_path, confused)

    async def otherwise(*of: Any) -> Looked:
        seen = await look_beside(*of)
        return replace(seen, problem="norm: too odd") if seen.problem.startswith("base") else seen

    monkeypatch.setattr(works, "look_beside", otherwise)
    report, _ = played(told, ports)
    assert report.rejected == {"norm": 2, "job": 2}
    assert [(row["round"], row["what"], row["played"]) for row in report.differing] == [
        (1, "verdict", "norm: too odd"),
        (2, "verdict", "norm: too odd"),
    ]


def test_whoever_is_asked_without_a_recorded_answer_declines_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everybody(state: State, job: Job) -> list[str]:
        return sorted(one.id for one in state.devices.values() if one.state is DeviceState.ACTIVE)

    def all_of(job: Job, round_: int, attempt: int, candidates: list[str], *_: object) -> list[str]:
        return candidates

    told, ports = told_of(tmp_path, drawn)
    monkeypatch.setattr(rounds, "eligible", everybody)
    monkeypatch.setattr(rounds, "select", all_of)
    report, _ = played(told, ports)
    assert report.equal, report.document()
    assert report.declined["no answer was recorded"] > 4


@pytest.mark.parametrize("op", ["", "cancel"])
def test_a_recording_without_its_jobs_end_is_played_to_where_it_ends(tmp_path: Path, op: str) -> None:
    report, _ = played(*told_of(tmp_path, unended(op)))
    assert report.equal, report.document()
    assert (report.played, report.accepted) == (3, 3)
    assert report.final is not None
    assert report.final["version"] == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_run_in_which_much_went_by_chance_leads_to_the_recorded_digest(tmp_path: Path, seed: int) -> None:
    report, _ = played(*told_of(tmp_path, chance(seed)), random.Random(seed).choice([MAX, 50.0, 5.0]))
    assert report.equal, report.document()
    assert report.played


def test_updates_that_were_there_before_the_last_one_wanted_was_looked_at_are_folded_again(
    tmp_path: Path,
) -> None:
    report, _ = played(*told_of(tmp_path, crowded))
    assert report.equal, report.document()
    assert report.accepted == 6


def test_what_was_rejected_for_what_it_said_is_rejected_again(tmp_path: Path) -> None:
    report, _ = played(*told_of(tmp_path, confused))
    assert report.equal, report.document()
    assert report.rejected == {"base": 2, "job": 2}


@pytest.mark.parametrize(("story", "count", "alive_s"), [(drawn, COUNT, 0.3), (None, CHUNKED, 25.0)])
def test_a_coordinator_that_is_killed_again_and_again_is_played_to_all_the_same(
    tmp_path: Path, story: Story | None, count: int, alive_s: float
) -> None:
    told, ports = told_of(tmp_path, story, count)
    begun, reports = tmp_path / "begun", []
    stage(ports, told, begun, CONFIG)

    async def play() -> None:
        source = Source(ports, told)
        async with asyncio.TaskGroup() as tasks, federation(begun, ports, count) as fed:

            async def kill() -> None:
                while True:
                    await asyncio.sleep(alive_s)
                    await fed.restart(tasks)

            killing = tasks.create_task(kill(), name="kills")
            reports.append(await play_devices(ports, source, partial(fed.dial, IN_MEMORY.broker), 2.0))
            killing.cancel()
        source.close()

    virtual_loop.run(play)
    assert reports[0].equal, reports[0].document()


def test_a_federation_with_its_own_keys_is_refused_with_the_remedy(tmp_path: Path) -> None:
    told_of(tmp_path)
    with pytest.raises(OntoRefused, match="journal export --rekey"):
        Source(unsynced(), tmp_path / "home")


def test_an_export_without_content_is_refused(tmp_path: Path) -> None:
    home, told, ports = record(tmp_path / "home"), tmp_path / "told", unsynced()
    export(ports, home, told, CONFIG, Content.DROP)
    source = Source(ports, told)

    async def play() -> None:
        await play_devices(ports, source, lambda who, topics: pytest.fail("nobody is called"), MAX)

    with pytest.raises(OntoRefused, match="--bodies keep"):
        asyncio.run(play())
    source.close()


def test_a_job_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    told, ports = told_of(tmp_path)
    with pytest.raises(OntoRefused, match="trained: job-1"):
        stage(ports, told, tmp_path / "begun", CONFIG, "job-9")


def test_without_a_coordinator_it_ends_and_names_who_was_waited_for(tmp_path: Path) -> None:
    told, ports = told_of(tmp_path)
    reports = []

    async def play() -> None:
        source = Source(ports, told)
        fed = Federation(tmp_path / "unused", ports, COUNT)  # its broker alone
        reports.append(await play_devices(ports, source, partial(fed.dial, IN_MEMORY.broker), MAX))
        fed.coordinator.ledger.journal.close()
        source.close()

    virtual_loop.run(play)
    assert reports[0].stopped.startswith("device-1: no answer to what it can do within 60 s")
    assert "journal stage" in reports[0].stopped
    assert not reports[0].equal


def test_a_coordinator_that_was_played_to_already_is_told_of(tmp_path: Path) -> None:
    told, ports = told_of(tmp_path, drawn)
    assert played(told, ports)[0].equal
    report, _ = played(told, ports)
    assert "no request for round 1" in report.stopped
