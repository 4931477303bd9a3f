"""A short history in which nearly everything happens that a log can hold, on a virtual clock and a real disk.

Its names are a factory's own, and occur nowhere else: whoever finds one in an export has found a leak.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from broker.ports import Files, Ports
from broker.system import system_ports
from coordinator.config import FILE, PASSWORD, Config, config_text
from coordinator.ledger import FLUSH_S
from coordinator.rekey.draft import DraftFiles
from coordinator.state import JobState
from schemas import events as e
from schemas import work
from schemas.enrolment import token_from_text
from schemas.envelope import Order, new_clear, seal
from schemas.limits import CHUNK_BYTES_MIN, REPLAY_WINDOW
from schemas.models import open_layout, open_manifest
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import TASK, Federation, StandIn, federation, spec
from tests.workers import Answer, maker

COUNT: Final = 10
DEVICES: Final = ("press-07", "press-08", "oven-3")
AGENT, ENTITY, DATASET = "roller-agent 3", "acme-works", "hall-4"
JOB, BROKEN, IDLE = "wear-of-rollers", "cracks-in-steel", "idle-rollers"
BROKER: Final = "mqtts://broker.acme-works.example:8883"
USER, PASSWORD_TEXT = "fed-acme-works", "the coordinator's own secret"
HOME: Final = Path("/c")
TEXTS: Final = (
    "hall 4 is closed",
    "stolen from the yard",
    "no such folder: srv/wear",
    "torque of the rollers",
)
"""What people and programs wrote; the last is a name of a column."""
ROUNDS: Final = 6


def makes(ports: Ports, count: int) -> Answer:
    """A worker that cannot make the model of the job `BROKEN`."""
    make = maker(ports, count)

    def answer(data: bytes) -> bytes | None:
        order = work.decode_order(data[work.FRAME.size :])
        if isinstance(order, work.Make) and order.job == BROKEN:
            return work.encode(work.Problem(code="data", text=TEXTS[2]))
        return make(data)

    return answer


@cache
def _recorded(count: int) -> dict[Path, bytes]:
    ports = sim_ports()

    async def play() -> None:
        async with asyncio.TaskGroup() as tasks, federation(HOME, ports, count, make=makes) as fed:
            await History(fed, count, tasks).play()

    virtual_loop.run(play)
    return dict(found(ports.files, HOME))


def found(files: Files, folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file in ``folder``, by its path from there."""
    for path in (folder / name for name in files.names(folder)):
        if files.names(path):
            yield from ((Path(path.name) / inside, data) for inside, data in found(files, path))
        else:
            with suppress(FileNotFoundError):  # a folder without files
                yield Path(path.name), files.read(path)


def record(home: Path, count: int = COUNT) -> Path:
    """Keep the history, with models of ``count`` parameters, in ``home``, whose broker is a factory's."""
    spill(_recorded(count), home)
    (home / FILE).write_text(config_text(Config(broker=BROKER, username=USER)))
    (home / PASSWORD).write_text(PASSWORD_TEXT)
    return home


def spill(files: Mapping[Path, bytes], home: Path) -> None:
    """Put files of a simulated disk on a real one."""
    for path, data in files.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(data)


def unsynced() -> Ports:
    """The machine's own, without its syncs: what is tested does not lose power."""
    ports = system_ports()
    return replace(ports, files=DraftFiles(ports.files))


class History:
    """What happens, in order."""

    def __init__(self, fed: Federation, count: int, tasks: asyncio.TaskGroup) -> None:
        self.fed, self.count, self.tasks = fed, count, tasks
        self.newest: dict[bytes, int] = {}
        self.rng = np.random.default_rng(7)

    async def play(self) -> None:
        """All of it."""
        self.a, self.b, self.c = [await self.device(name) for name in DEVICES]
        settings = {"columns": [TEXTS[3], "heat"], "rate": 0.5}
        # Nobody measures it: an alarm.
        evaluation = {"dataset": f"/{DATASET}/rolls.npz", "metric": "rolls-turned"}
        await self.submit(
            JOB,
            rounds=ROUNDS,
            cohort=3,
            dataset=DATASET,
            config=settings,
            deadline_s=20.0,
            quarantine_after=2,
            evaluation=evaluation,
        )
        await self.first_round()
        await self.late_and_wrong()
        await self.nobody_answers()
        await self.fed.restart(self.tasks)
        await self.what_devices_ask()
        await self.other_jobs()
        await self.one_leaves_and_returns()
        await self.the_rest()

    async def device(self, name: str) -> StandIn:
        fed = self.fed
        invited = await fed.command("invite", device=name, entity=ENTITY)
        device = StandIn(token_from_text(invited["token"]), fed.dial, fed.ports, fed.directory)
        await device.__aenter__()
        await device.enrol()
        status = e.DeviceStatus(
            agent=AGENT,
            cores=2,
            memory_bytes=1 << 30,
            power="mains",
            tasks=[TASK, "smelting"],
            samples={DATASET: 4_711, "back-yard": 12},
        )
        await device.say(status)
        return device

    async def submit(self, name: str, **fields: Any) -> None:
        await self.fed.command(
            "submit", spec=spec(name, min_reports=1, server={"optimiser": "fedadam"}, **fields)
        )

    async def answer(
        self, device: StandIn, request: e.TrainingRequest, *, chunked: bool = False, **changed: Any
    ) -> None:
        """An update, sent; `Verdict` is still to be heard."""
        delta = changed.pop("delta", self.rng.standard_normal(self.count, dtype=np.float32) / 10)
        await device.say(e.Accept(job=request.job, request=request.request))
        measured = {"metrics": {"loss": 0.5, "rolls-turned": 3.0}, "evaluation": {"accuracy": 0.75}} | changed
        update, content = device.update(request, delta, 5, **measured)
        sealed, chunks = device.seal(request, update, content, CHUNK_BYTES_MIN if chunked else 0)
        await device.send_chunks(await device.offer(sealed), chunks)

    async def asked(self, device: StandIn) -> e.TrainingRequest:
        """Its next request; what is sent again is passed over."""
        while True:
            request = await device.next(e.TrainingRequest)
            open_round = self.fed.job(JOB).rounds_done + 1
            if request.round == open_round and request.request > self.newest.get(device.key.id, 0):
                self.newest[device.key.id] = request.request
                return request

    async def folded(self, device: StandIn, *, chunked: bool = False) -> None:
        await self.answer(device, await self.asked(device), chunked=chunked)
        assert (await device.next(e.Verdict)).folded

    async def first_round(self) -> None:
        """One update inline, one in chunks, and a device that will not."""
        await self.folded(self.a)
        await self.folded(self.b, chunked=True)
        request = await self.asked(self.c)
        decline = e.Decline(job=JOB, request=request.request, reason="busy", text=TEXTS[0])
        await self.c.say(decline)
        await self.until(1)

    async def late_and_wrong(self) -> None:
        """NaN, rubbish and a wrong length are rejected, and what comes after the deadline."""
        late = await self.asked(self.c)
        request = await self.asked(self.a)
        await self.answer(self.a, request, delta=np.full(self.count, np.nan, np.float32))
        assert not (await self.a.next(e.Verdict)).folded
        await self.folded(self.b)
        await self.until(2)
        await self.answer(self.c, late)
        assert (await self.c.next(e.Verdict)).reason.startswith("late")
        request = await self.asked(self.a)
        clear = new_clear(self.a.federation, self.a.key.public, request.update_key)
        await self.a.offer(seal(clear, bytes(range(32)), request.update_key, b"rubbish"))
        assert not (await self.a.next(e.Verdict)).folded
        request = await self.asked(self.c)
        await self.answer(self.c, request, delta=np.ones(self.count + 1, np.float32))
        assert not (await self.c.next(e.Verdict)).folded

    async def nobody_answers(self) -> None:
        """The third round gets more time, and then one update. The operator ends a quarantine meanwhile."""
        await self.fed.until(lambda: DEVICES[0] in self.fed.job(JOB).quarantine)
        await self.fed.command("release", device=DEVICES[0])
        request = await self.asked(self.b)
        await asyncio.sleep(2 * self.fed.job(JOB).spec.deadline_s)
        await self.answer(self.b, request)
        assert (await self.b.next(e.Verdict)).folded
        await self.until(3)

    async def what_devices_ask(self) -> None:
        """For their state, a model's chunk, the newest version; and what they refuse."""
        request = await self.asked(self.a)
        held = [e.RequestRef(JOB, request.request), e.RequestRef("unheard-of", 3)]
        await self.a.say(e.StateRequest(requests=held, key_set=1))
        await self.a.next(e.StateReply)
        for job in (JOB, "unheard-of"):
            await self.a.say(e.ModelRequest(job=job))
        offer = await self.a.next(e.ModelOffer)
        await self.a.next(e.Refusal)
        layout = open_layout(offer.layout, self.fed.identity.online.public, JOB)
        signer, federation = self.fed.identity.online.public, self.fed.identity.federation
        manifest = open_manifest(offer.manifest, signer, federation, JOB, layout)
        await self.a.say(e.ChunkPull(transfer=manifest.transfer(), chunks=[0]))
        while not isinstance(await self.a.hear(), bytes):
            pass
        await self.a.say(e.Refusal(code="forged", text=TEXTS[2], transfer=manifest.transfer()))
        await self.answer(self.a, request, chunked=True)
        verdict = await self.a.next(e.Verdict)
        assert verdict.folded, verdict

    async def other_jobs(self) -> None:
        """One is cancelled, one has no model."""
        await self.submit(IDLE, cohort=9)
        await self.fed.until(lambda: self.fed.job(IDLE).state is JobState.RUNNING)
        await self.fed.command("cancel", job=IDLE)
        await self.submit(BROKEN)
        await self.fed.until(lambda: self.fed.job(BROKEN).state is JobState.FAILED)

    async def one_leaves_and_returns(self) -> None:
        """A revoked device is told so, and comes back with other keys."""
        await self.fed.command("revoke", device=DEVICES[2], reason=TEXTS[1])
        await self.c.next(e.Revoked)
        await self.c.close()
        self.c = await self.device(DEVICES[2])

    async def the_rest(self) -> None:
        """Whoever is asked answers, one of them with a number far ahead and another far behind."""
        await self.folded(self.b)
        await self.until(4)
        await self.folded(self.a)
        request = await self.asked(self.b)
        self.b.mailbox.sequencer.skip_beyond(2 * REPLAY_WINDOW)
        await self.b.say(e.Accept(job=JOB, request=request.request))
        sealed, _ = self.b.seal(request, *self.b.update(request, np.zeros(self.count, np.float32)))
        await self.b.offer(sealed, Order(0, 1))
        await self.b.next(e.Stale)
        await self.b.offer(sealed)
        assert (await self.b.next(e.Verdict)).folded
        await self.folded(self.c)
        await self.until(5)
        for device in (self.a, self.b, self.c):
            await self.folded(device)
        await self.fed.until(lambda: self.fed.job(JOB).state is JobState.FINISHED)
        await self.a.next(e.JobFinished)
        await asyncio.sleep(2 * FLUSH_S)  # that it was told is recorded with what comes next

    async def until(self, version: int) -> None:
        await self.fed.until(lambda: len(self.fed.job(JOB).versions) > version)
