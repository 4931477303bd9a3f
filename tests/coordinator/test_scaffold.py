"""SCAFFOLD at the coordinator: control variates follow from the updates, and lead to the right model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from broker.ports import Ports
from coordinator.fold import Folder
from coordinator.recording import Recording
from coordinator.replay import replay
from coordinator.state import Request
from coordinator.strategies import begun, server_optimiser, weigh
from coordinator.whatif import Settings, what_if
from schemas import events as e
from schemas import work
from schemas.errors import JobRefused
from schemas.jobs import JobSpec, LocalPlan, ServerSettings, parse_job
from schemas.models import Layout, Tensor, controls_of
from tests.coordinator.stored_updates import Sender, read
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import StandIn, federation, spec
from tests.workers import Answer

HOME = Path("/c")
COUNT = 3
ROUNDS_MAX = 100
PLAN = LocalPlan(epochs=2, batch_size=4, learning_rate=0.05)
Floats = NDArray[np.float64]


def layout_of(job: str, count: int, *, controlled: bool = True) -> Layout:
    tensors = [Tensor("w", [count], "float32", "trained")]
    return Layout(job=job, tensors=tensors + (controls_of(tensors) if controlled else []))


class Quadratics:
    """Devices that each minimise ½·a·(x - b)² by plain gradient steps, with more samples the more of them."""

    def __init__(self, seed: int, *, scaffold: bool) -> None:
        numbers = np.random.default_rng(seed)
        self.count = 6
        self.curve = numbers.uniform(0.5, 4.0, (self.count, COUNT))
        self.best = numbers.normal(0.0, 2.0, (self.count, COUNT))
        self.samples = [int(n) for n in numbers.integers(1, 60, self.count)]
        self.own = np.zeros((self.count, COUNT))
        self.scaffold = scaffold
        self.folder = Folder(layout_of("job", COUNT, controlled=scaffold))
        self.model: bytes | memoryview = bytes(4 * COUNT * (2 if scaffold else 1))
        self.optimiser = server_optimiser(ServerSettings())

    @property
    def optimum(self) -> Floats:
        """Of all devices' functions together, weighted by samples."""
        pull = np.array(self.samples)[:, None] * self.curve
        found: Floats = (pull * self.best).sum(axis=0) / pull.sum(axis=0)
        return found

    def parts(self) -> tuple[Floats, Floats]:
        """Model and control variate."""
        both = np.frombuffer(self.model, "<f4").astype(np.float64)
        return both[:COUNT], both[COUNT:] if self.scaffold else np.zeros(COUNT)

    def train(self, device: int) -> tuple[NDArray[np.float32], int]:
        (x, c), steps = self.parts(), PLAN.steps(self.samples[device])
        y = x.copy()
        for _ in range(steps):
            gradient = self.curve[device] * (y - self.best[device])
            y -= PLAN.learning_rate * (gradient + (c - self.own[device] if self.scaffold else 0.0))
        self.own[device] += -c - (y - x) / (steps * PLAN.learning_rate)
        return (y - x).astype("<f4"), steps

    def round(self, devices: list[int]) -> None:
        self.folder.clear()
        for device in devices:
            delta, steps = self.train(device)
            samples = self.samples[device]
            read(self.folder, Sender(COUNT).stored(delta, samples), COUNT)
            request = Request("d", 1, 1, b"", norm=1.0, samples=samples, steps=steps)
            self.folder.add(weigh(request, JobSpec(name="j", task="t", local=PLAN)))
        population = self.count if self.scaffold else 0
        self.model = self.folder.finish(self.model, self.optimiser, begun(self.optimiser, COUNT), population)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scaffold_comes_to_the_optimum_where_fedavg_comes_to_another_point(seed: int) -> None:
    distances = []
    for scaffold in (True, False):
        world = Quadratics(seed, scaffold=scaffold)
        for _ in range(ROUNDS_MAX):
            world.round(list(range(world.count)))
        distances.append(float(np.abs(world.parts()[0] - world.optimum).max()))
    assert distances[0] < 1e-3
    assert distances[1] > 0.02


def test_where_all_take_part_the_servers_control_variate_is_the_mean_of_the_devices() -> None:
    world = Quadratics(4, scaffold=True)
    for _ in range(3):
        world.round(list(range(world.count)))
        mean = np.average(world.own, axis=0, weights=world.samples)
        assert world.parts()[1] == pytest.approx(mean, rel=1e-4, abs=1e-5)


def test_with_half_of_the_devices_in_each_round_it_still_comes_there() -> None:
    world, numbers = Quadratics(5, scaffold=True), np.random.default_rng(5)
    first = float(np.abs(world.optimum).max())
    for _ in range(2 * ROUNDS_MAX):
        world.round(sorted(int(k) for k in numbers.permutation(world.count)[: world.count // 2]))
    assert float(np.abs(world.parts()[0] - world.optimum).max()) < first / 10


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"local": {"momentum": 0.9}}, r"local\.momentum 0\.9 does not go with \[scaffold\]"),
        ({"local": {"proximal": 0.1}}, r"local\.proximal 0\.1 does not go"),
        ({"server": {"optimiser": "fedadam"}}, r"server\.optimiser fedadam does not go"),
        ({"server": {"normalised": True}}, r"server\.normalised does not go"),
        ({"cohort": 9}, r"scaffold\.devices 4 are fewer than cohort 9"),
    ],
)
def test_what_does_not_go_with_it_is_refused(table: dict[str, Any], told: str) -> None:
    with pytest.raises(JobRefused, match=told):
        parse_job(spec(scaffold={"devices": 4}, **table))


def maker(ports: Ports, count: int) -> Answer:
    """Zeros, and zeros for control variates."""

    def answer(data: bytes) -> bytes | None:
        order = work.decode_order(data[work.FRAME.size :])
        assert isinstance(order, work.Make)
        assert order.controlled
        file = ports.files.open(Path(order.out), create=True)
        file.append(bytes(8 * count))
        file.sync()
        file.close()
        return work.encode(work.Made(layout=layout_of(order.job, count)))

    return answer


ROUNDS = 3
SAMPLES = {"d0": 5, "d1": 9}
SCHEDULE = {"kind": "step", "rounds": 1, "factor": 0.5}
TOLD = {"epochs": 2, "batch_size": 4, "learning_rate": 0.05, "schedule": SCHEDULE}


def delta(device: str, round_: int) -> NDArray[np.float32]:
    return np.random.default_rng([round_, int(device[1:])]).standard_normal(COUNT, dtype=np.float32)


async def answered(device: StandIn, round_: int, steps: int) -> e.Verdict:
    request = await device.next(e.TrainingRequest)
    await device.say(e.Accept(job=request.job, request=request.request))
    samples = SAMPLES[device.id]
    update = device.update(request, delta(device.id, round_), samples, steps=steps)
    sealed, _ = device.seal(request, *update)
    await device.offer(sealed)
    return await device.next(e.Verdict)


def played(ports: Ports, steps_of: Any, verdicts: list[str]) -> None:
    job = spec(rounds=ROUNDS, cohort=2, min_reports=1, local=TOLD, scaffold={"devices": 4}, deadline_s=60.0)

    async def play() -> None:
        async with asyncio.TaskGroup() as tasks, federation(HOME, ports, COUNT, make=maker) as fed:
            devices = [await fed.device(name) for name in SAMPLES]
            await fed.command("submit", spec=job)
            for round_ in range(1, ROUNDS + 1):
                await fed.until(lambda round_=round_: fed.job("job").rounds_done == round_ - 1)  # type: ignore[misc]
                if round_ == 2:
                    await fed.restart(tasks)
                for device in devices:
                    verdict = await answered(device, round_, steps_of(device.id))
                    verdicts.append(verdict.reason)
            await devices[0].next(e.JobFinished)

    virtual_loop.run(play)


def honest(device: str) -> int:
    return PLAN.steps(SAMPLES[device])


def test_versions_hold_the_control_variates_and_are_replayed_to_the_bit() -> None:
    ports = sim_ports()
    played(ports, honest, [])
    assert replay(ports, HOME)["equal"]
    recording = Recording(ports, HOME)
    models = [recording.store.model("job", commit.fact.model) for commit in recording.commits("job")]
    x, c = np.zeros(COUNT), np.zeros(COUNT)
    for round_, model in enumerate(models):
        if round_:
            weights = np.array(list(SAMPLES.values())) / sum(SAMPLES.values())
            moved = np.array([delta(device, round_) for device in SAMPLES], dtype=np.float64)
            rate = 0.05 * 0.5 ** (round_ - 1)
            ways = np.array([honest(device) * rate for device in SAMPLES])[:, None]
            x = x + weights @ moved
            c = c + 2 / 4 * (weights @ (-c - moved / ways))
        found = np.frombuffer(model, "<f4")
        assert found[:COUNT] == pytest.approx(x, rel=1e-5)
        assert found[COUNT:] == pytest.approx(c, rel=1e-5)
    rows = [parted.row for parted in what_if(Recording(ports, HOME), "job", Settings())]
    assert {row["distance"] for row in rows} == {0.0}


def test_steps_that_are_not_those_of_the_samples_are_rejected_for_they_would_spoil_it() -> None:
    verdicts: list[str] = []
    played(sim_ports(), lambda device: honest(device) - (device == "d1"), verdicts)
    assert verdicts[::2] == [""] * ROUNDS
    assert set(verdicts[1::2]) == {"steps: 5 are not the 6 that 9 samples take"}


def test_a_layout_whose_control_tensors_are_not_of_its_trained_ones_is_refused() -> None:
    from schemas.errors import LayoutMismatch

    good = layout_of("job", COUNT)
    good.check()
    with pytest.raises(LayoutMismatch, match="control tensors"):
        replace(good, tensors=[good.tensors[0], replace(good.tensors[1], shape=[COUNT + 1])]).check()
