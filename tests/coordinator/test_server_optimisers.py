"""A job's server optimiser goes on through restarts, and a recording tells what it did, to the bit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from broker.ports import Ports
from coordinator.recording import Recording
from coordinator.replay import replay
from coordinator.store import Altered
from coordinator.strategies import begun, server_optimiser
from coordinator.whatif import Settings, blame, what_if
from schemas import events as e
from schemas.jobs import ServerSettings
from schemas.schedules import Schedule
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import Federation, StandIn, federation, spec

HOME = Path("/c")
COUNT, ROUNDS = 8, 4
SERVER = ServerSettings(optimiser="fedadam", learning_rate=0.5)
SAMPLES = {"d0": 1, "d1": 3}
Floats = NDArray[np.float32]
Between = Callable[[Federation, asyncio.TaskGroup], Awaitable[None]]


def delta(device: str, round_: int) -> Floats:
    return np.random.default_rng([round_, int(device[1:])]).standard_normal(COUNT, dtype=np.float32)


def mean(round_: int) -> NDArray[np.float64]:
    weighted = [delta(device, round_).astype(np.float64) * n for device, n in SAMPLES.items()]
    total: NDArray[np.float64] = np.sum(weighted, axis=0)
    return total / sum(SAMPLES.values())


def reference(server: ServerSettings = SERVER) -> list[Floats]:
    """The model after each round, 0 being the first."""
    models = [np.zeros(COUNT, np.float32)]
    moments = begun(server_optimiser(server), COUNT)
    for round_ in range(1, ROUNDS + 1):
        step, kept = mean(round_), moments.astype(np.float64)
        server_optimiser(server, round_).step(step, kept)
        moments[:] = kept
        models.append((models[-1] + step).astype(np.float32))
    return models


async def play_round(devices: list[StandIn], round_: int) -> None:
    for device in devices:
        request = await device.next(e.TrainingRequest)
        await device.answer(request, delta(device.id, round_), samples=SAMPLES[device.id])
        await device.next(e.Verdict)


async def nothing(fed: Federation, tasks: asyncio.TaskGroup) -> None:
    pass


def recorded(between: Between = nothing, server: dict[str, Any] | None = None) -> Ports:
    """A job of `ROUNDS` rounds; ``between`` happens before each but the first."""
    ports = sim_ports()
    told = (
        {"optimiser": SERVER.optimiser, "learning_rate": SERVER.learning_rate} if server is None else server
    )

    async def play() -> None:
        async with asyncio.TaskGroup() as tasks, federation(HOME, ports, COUNT) as fed:
            devices = [await fed.device(name) for name in SAMPLES]
            await fed.command("submit", spec=spec(rounds=ROUNDS, cohort=2, min_reports=2, server=told))
            for round_ in range(1, ROUNDS + 1):
                await fed.until(lambda round_=round_: fed.job("job").rounds_done == round_ - 1)  # type: ignore[misc]
                if round_ > 1:
                    await between(fed, tasks)
                await play_round(devices, round_)
            await devices[0].next(e.JobFinished)

    virtual_loop.run(play)
    return ports


def models(ports: Ports) -> list[Floats]:
    recording = Recording(ports, HOME)
    digests = [commit.fact.model for commit in recording.commits("job")]
    return [np.frombuffer(recording.store.model("job", digest), "<f4", COUNT) for digest in digests]


async def killed(fed: Federation, tasks: asyncio.TaskGroup) -> None:
    await fed.restart(tasks)


@pytest.mark.parametrize("between", [nothing, killed])
def test_every_version_has_the_bits_of_the_reference_through_restarts_too(between: Between) -> None:
    ports = recorded(between)
    for found, wanted in zip(models(ports), reference(), strict=True):
        assert found.tobytes() == wanted.tobytes()
    result = replay(ports, HOME)
    assert result["equal"], result["difference"]


def test_without_a_table_the_bits_are_those_of_fedavg() -> None:
    for found, wanted in zip(models(recorded(server={})), reference(ServerSettings()), strict=True):
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_a_learning_rate_with_a_schedule_is_followed_by_replay_and_what_if(kind: Any) -> None:
    schedule = Schedule(kind=kind, rounds=2, factor=0.3)
    server = ServerSettings(optimiser="fedadam", learning_rate=0.5, schedule=schedule)
    ports = recorded(killed, server=msgspec.to_builtins(server))
    found = models(ports)
    for model, wanted in zip(found, reference(server), strict=True):
        assert model.tobytes() == wanted.tobytes()
    assert found[-1].tobytes() != models(recorded())[-1].tobytes()
    assert replay(ports, HOME)["equal"]
    rows = [parted.row for parted in what_if(Recording(ports, HOME), "job", Settings())]
    assert {row["distance"] for row in rows} == {0.0}


def test_what_is_kept_has_its_digest_in_the_log() -> None:
    ports = recorded()
    kept = [commit.fact for commit in Recording(ports, HOME).commits("job")]
    assert [len(fact.moments) for fact in kept] == [0, *[32] * ROUNDS]
    assert len({fact.moments for fact in kept}) == 1 + ROUNDS


@pytest.mark.parametrize(("kept", "told"), [(3, "altered"), (None, "missing"), (64, "altered")])
def test_moments_that_are_not_what_they_were_end_the_coordinator_with_file_and_remedy(
    kept: int | None, told: str
) -> None:
    async def alter(fed: Federation, tasks: asyncio.TaskGroup) -> None:
        path, files = HOME / "models" / "job" / "000001.moments", fed.ports.files
        data = files.read(path)
        files.remove(path)
        if kept is not None:
            file = files.open(path, create=True)
            file.append(memoryview(data[:kept] + b"\x7f" if kept < len(data) else data + b"\x7f"))
            file.close()

    with pytest.raises(ExceptionGroup) as caught:
        recorded(alter)
    assert caught.group_contains(Altered, match=rf"000001\.moments .*{told}.*restore", depth=None)


@pytest.mark.parametrize(
    ("server", "changes"),
    [
        ({"optimiser": "fedadagrad"}, [9e18] * 5),  # the sum of squares
        ({"optimiser": "fedadam", "beta_2": 0.0, "tau": 1e-300}, [1e-20, 0.0]),  # the quotient
    ],
)
def test_a_job_whose_numbers_overflow_fails_and_keeps_its_last_version(
    server: dict[str, Any], changes: list[float]
) -> None:
    ports = sim_ports()

    async def play() -> None:
        async with federation(HOME, ports, COUNT) as fed:
            device = await fed.device("d0")
            await fed.command("submit", spec=spec(rounds=9, update_norm_max=1e30, server=server))
            for change in changes:
                request = await device.next(e.TrainingRequest)
                await device.answer(request, np.array([change, *[0.0] * (COUNT - 1)], np.float32))
                await device.next(e.Verdict)
            await device.next(e.JobFinished)
            assert fed.job("job").state == "failed"
            assert "server.learning_rate" in fed.job("job").reason

    virtual_loop.run(play)
    assert len(models(ports)) == len(changes)
    assert all(np.isfinite(model).all() for model in models(ports))
    assert replay(ports, HOME)["equal"]


def test_under_the_recorded_optimiser_no_version_differs() -> None:
    recording = Recording(recorded(), HOME)
    assert [parted.row["distance"] for parted in what_if(recording, "job", Settings())] == [0.0] * (
        ROUNDS + 1
    )


def test_another_optimiser_goes_on_from_what_it_would_have_kept() -> None:
    ports, other = recorded(), ServerSettings(optimiser="fedavgm", learning_rate=1.0)
    was, momentum = models(ports), np.zeros(COUNT)
    told = list(what_if(Recording(ports, HOME), "job", Settings(server=other)))
    for round_ in range(1, ROUNDS + 1):
        momentum = (momentum * other.beta_1 + mean(round_)).astype(np.float32).astype(np.float64)
        wanted = (was[round_ - 1] + momentum).astype(np.float32)
        assert np.frombuffer(told[round_].other, "<f4", COUNT) == pytest.approx(wanted, rel=1e-6)


def test_blame_makes_the_version_without_a_device_as_the_optimiser_would() -> None:
    ports = recorded()
    was = models(ports)
    optimiser = server_optimiser(SERVER)
    moments = begun(optimiser, COUNT)
    kept = moments.astype(np.float64)
    optimiser.step(mean(1), kept)
    moments[:] = kept
    _, blamed = blame(Recording(ports, HOME), "job", 2)
    for one in blamed:
        (other,) = SAMPLES.keys() - {one.row["device"]}
        step, kept = delta(other, 2).astype(np.float64), moments.astype(np.float64)
        optimiser.step(step, kept)
        wanted = (was[1] + step).astype(np.float32)
        assert np.frombuffer(one.without, "<f4", COUNT) == pytest.approx(wanted, rel=1e-5)
