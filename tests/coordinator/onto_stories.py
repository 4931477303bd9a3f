"""Recordings to be played, and their playing on a virtual clock, over memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec.structs import replace as with_fields

from broker.ports import Ports
from coordinator.config import Config
from coordinator.onto.play import play_devices
from coordinator.onto.report import Report
from coordinator.onto.source import Source
from coordinator.onto.stage import stage
from coordinator.rekey.export import export
from coordinator.state import JobState
from schemas import events as e
from tests.replay.history import COUNT, record, unsynced
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import IN_MEMORY, Federation, StandIn, federation, spec

LOOKS: Final = 20
MAX: Final = float("inf")
CONFIG: Final = Config(broker=IN_MEMORY.broker)
Story = Callable[[Federation], Awaitable[None]]


def told_of(tmp_path: Path, story: Story | None = None, count: int = COUNT) -> tuple[Path, Ports]:
    """The export of a recording: of ``story``, or of a history in which nearly everything happens."""
    home, told, files = tmp_path / "home", tmp_path / "told", unsynced().files
    if story is None:
        record(home, count)
    else:
        ports = replace(sim_ports(), files=files)

        async def play() -> None:
            async with federation(home, ports, count) as fed:
                await story(fed)

        virtual_loop.run(play)
    export(unsynced(), home, told, CONFIG)
    return told, replace(sim_ports(seed=1), files=files)


def played(told: Path, ports: Ports, speed: float = MAX, count: int = COUNT) -> tuple[Report, float]:
    """The report of a playing to a staging coordinator, and how long it took on a virtual clock."""
    begun, found = told.with_name("begun"), []
    if not begun.exists():
        stage(ports, told, begun, CONFIG)

    async def play() -> None:
        source, loop = Source(ports, told), asyncio.get_running_loop()
        async with federation(begun, ports, count) as fed:
            began_s = loop.time()
            report = await play_devices(ports, source, partial(fed.dial, IN_MEMORY.broker), speed)
            found.append((report, loop.time() - began_s))
        source.close()

    virtual_loop.run(play)
    return found[0]


async def drawn(fed: Federation) -> None:
    """Three of five devices are asked each round, for two: whoever is last may be late."""
    devices = [await fed.device(f"press-{number}") for number in range(5)]
    asks: dict[str, Any] = {"rounds": 4, "cohort": 2, "min_reports": 2, "over_selection": 1.5, "seed": 3}
    await fed.command("submit", spec=spec(**asks))
    rng = np.random.default_rng(1)
    for number in range(1, 5):
        open_round = fed.job("job").round
        while open_round is None or open_round.number != number or open_round.preparing:
            await asyncio.sleep(0.1)
            open_round = fed.job("job").round
        asked = [device for device in devices if device.id in {one.device for one in open_round.requests}]
        rng.shuffle(asked)
        for device in asked:
            request = await device.next(e.TrainingRequest)
            await device.answer(request, rng.standard_normal(COUNT, dtype=np.float32))
            await device.next(e.Verdict)
            await asyncio.sleep(1)
    await fed.until(lambda: fed.job("job").state is JobState.FINISHED)
    await asyncio.sleep(1)  # what was said last is durable, too


def unended(op: str) -> Story:
    """One round and a half; then ``op``, or nothing, and the recording ends."""

    async def story(fed: Federation) -> None:
        devices = [await fed.device(name) for name in ("press-07", "press-08")]
        await fed.command("submit", spec=spec(rounds=3, cohort=2, min_reports=2))
        rng = np.random.default_rng(2)
        for device in (*devices, devices[0]):
            request = await device.next(e.TrainingRequest)
            await device.answer(request, rng.standard_normal(COUNT, dtype=np.float32))
            await device.next(e.Verdict)
        if op:
            await fed.command(op, job="job")
        await asyncio.sleep(1)

    return story


async def crowded(fed: Federation) -> None:
    """Two of three devices are wanted, but all three updates are there before the first is looked at."""
    devices = [await fed.device(name) for name in ("press-07", "press-08", "press-09")]
    await fed.command("submit", spec=spec(rounds=2, cohort=2, over_selection=1.5))
    rng, looks = np.random.default_rng(4), fed.coordinator._works._look

    async def slowly(*of: Any) -> Any:
        await asyncio.sleep(5)
        return await looks(*of)

    fed.coordinator._works._look = slowly  # type: ignore[assignment, method-assign]  # as of a large model
    for _ in range(2):
        for device in devices:
            request = await device.next(e.TrainingRequest)
            await device.answer(request, rng.standard_normal(COUNT, dtype=np.float32))
        for device in devices:
            assert (await device.next(e.Verdict)).folded
    await devices[0].next(e.JobFinished)
    await asyncio.sleep(1)


async def adaptive(fed: Federation) -> None:
    """A server optimiser keeps something from each of three rounds to the next."""
    devices = [await fed.device(name) for name in ("press-07", "press-08")]
    server = {"optimiser": "fedadam", "learning_rate": 0.5}
    await fed.command("submit", spec=spec(rounds=3, cohort=2, min_reports=2, server=server))
    rng = np.random.default_rng(5)
    for _ in range(3):
        for device in devices:
            request = await device.next(e.TrainingRequest)
            await device.answer(request, rng.standard_normal(COUNT, dtype=np.float32))
            await device.next(e.Verdict)
    await devices[0].next(e.JobFinished)
    await asyncio.sleep(1)


async def confused(fed: Federation) -> None:
    """One device trains on another model than it was asked to, one answers another request."""
    devices = [await fed.device(name) for name in ("press-07", "press-08", "press-09")]
    await fed.command("submit", spec=spec(rounds=2, cohort=3))
    wrong: list[dict[str, Any]] = [{"base": bytes(32)}, {"request": 9}, {}]
    for _ in range(2):
        for device, changed in zip(devices, wrong, strict=True):
            request = await device.next(e.TrainingRequest)
            update, content = device.update(request, np.ones(COUNT, np.float32))
            await device.offer(device.seal(request, with_fields(update, **changed), content)[0])
            assert (await device.next(e.Verdict)).folded == (not changed)
    await devices[0].next(e.JobFinished)
    await asyncio.sleep(1)


def chance(seed: int) -> Story:
    """Devices that are quick, slow, silent, or will not; and updates of NaN, or looked at late."""

    async def story(fed: Federation) -> None:
        draw = random.Random(seed)
        count = draw.randint(3, 8)
        cohort = draw.randint(1, count)
        devices = [await fed.device(f"press-{number}") for number in range(count)]
        looks, slow_s = fed.coordinator._works._look, draw.choice([0, 0.01, 1.0])

        async def slowly(*of: Any) -> Any:
            await asyncio.sleep(slow_s * draw.random())
            return await looks(*of)

        fed.coordinator._works._look = slowly  # type: ignore[assignment, method-assign]
        fields = {
            "cohort": cohort,
            "min_reports": draw.randint(1, cohort),
            "over_selection": draw.choice([1, 2]),
        }
        await fed.command("submit", spec=spec() | fields | {"rounds": 4, "deadline_s": 20.0, "seed": seed})
        async with asyncio.TaskGroup() as tasks:
            living = [tasks.create_task(_live(device, draw), name=device.id) for device in devices]
            for _ in range(LOOKS):
                await asyncio.sleep(45)  # who is late comes, too
                if fed.job("job").state is JobState.FINISHED:
                    break
            for task in living:
                task.cancel()

    return story


async def _live(device: StandIn, draw: random.Random) -> None:
    seen: set[int] = set()
    while True:
        try:
            request = await device.next(e.TrainingRequest)
        except TimeoutError:
            return  # nothing is said for longer than a deadline: it is over
        if request.request not in seen:
            seen.add(request.request)
            await asyncio.sleep(draw.choice([0, 0, draw.random(), 10 * draw.random(), 25 * draw.random()]))
            await _answer(device, request, draw)


async def _answer(device: StandIn, request: e.TrainingRequest, draw: random.Random) -> None:
    chance = draw.random()
    if chance < 0.1:
        return
    if chance < 0.2:
        reason = draw.choice(["busy", "data"])
        await device.say(e.Decline(job=request.job, request=request.request, reason=reason, text=""))
        await device.report()
        return
    delta = np.array([draw.gauss(0, 1) for _ in range(COUNT)], np.float32)
    if chance < 0.25:
        delta[0] = np.nan
    await device.answer(request, delta, draw.randint(1, 50))
