"""Equal digests wherever a recording is replayed: hash seeds, threads, and processors that can do less."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from broker.system import system_ports
from coordinator.fold import BLOCK
from schemas import events as e
from tests.replay.elsewhere import CORES, Place, Told, places, replay_at, without_effect
from tests.replay.golden import FORMS
from tests.replay.test_golden import GOLDEN
from tests.standin import federation, spec

pytestmark = pytest.mark.slow

COUNT: Final = 3 * BLOCK + 1_237  # parameters: whole blocks, and one that is not
DEVICES, ROUNDS = 3, 3
Recorded = tuple[list[Path], Told]
MASKED: Final = "all features masked"
NAMES: Final = [place.name for place in places(["some"])]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """What releases wrote and what this one does; and what a process like this one says of them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for archive in GOLDEN:
        zipfile.ZipFile(archive).extractall(folder / archive.stem)
    homes = [folder / archive.stem / form for archive in GOLDEN for form in FORMS]
    asyncio.run(record(folder / "made-now"))
    homes.append(folder / "made-now")
    return homes, replay_at(Place("here"), homes)


async def record(home: Path) -> None:
    """Rounds in which the order of adding, and every bit, shows."""
    rng = np.random.default_rng(5)
    async with federation(home, system_ports(), COUNT) as fed:
        devices = [await fed.device(f"d{number}") for number in range(DEVICES)]
        job = spec(rounds=ROUNDS, cohort=DEVICES, min_reports=DEVICES, update_norm_max=1e9)
        await fed.command("submit", spec=job)
        for _ in range(ROUNDS):
            for device in devices:
                request = await device.next(e.TrainingRequest)
                delta = rng.standard_normal(COUNT, np.float32) * np.float32(10.0 ** rng.integers(-6, 3))
                await device.answer(request, delta, samples=int(rng.integers(1, 10_000)))
        await devices[0].next(e.JobFinished)  # said once the last version is durable


def test_what_is_compared_was_computed_and_without_torch(recorded: Recorded) -> None:
    homes, here = recorded
    assert all(here["replays"][str(home)]["equal"] for home in homes)
    assert len(here["replays"][str(homes[-1])]["versions"]["job"]) == 1 + ROUNDS
    assert not here["torch"]


@pytest.mark.parametrize("name", NAMES)
def test_digests_are_equal_in_other_surroundings(recorded: Recorded, name: str) -> None:
    homes, here = recorded
    if name == MASKED and not here["features"]:
        pytest.skip("this processor has nothing that numpy could do without")
    (place,) = [one for one in places(here["features"]) if one.name == name]
    there = replay_at(place, homes)
    assert without_effect(here, there, place.environment) == []
    assert there["replays"] == here["replays"]


def test_a_switch_that_changes_nothing_is_noticed(recorded: Recorded) -> None:
    _, here = recorded
    for place in places(here["features"] or ["AVX2"]):
        switches = set(place.environment) - {"OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"}
        assert switches <= set(without_effect(here, here, place.environment))
    nothing = here | {"blas": [{"core": "Prescott", "threads": 64}]}
    of = {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": CORES[0]}
    assert without_effect(here, nothing, of) == list(of)
