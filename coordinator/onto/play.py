"""Recorded devices, played to a staging coordinator in the order of the log.

The order in which updates are received is the order of their sum, to the bit: so each one is sent once the
one before it is receipted, and after the verdicts that stood before it in the log.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from broker import service
from broker.ports import Ports
from coordinator.onto import Silence
from coordinator.onto.device import Offer, Played
from coordinator.onto.pace import Dial, Pace
from coordinator.onto.report import Report, kind_of
from coordinator.onto.script import (
    Accepted,
    Asked,
    Declined,
    Drawn,
    Judged,
    Received,
    Script,
    Silent,
    Step,
    read_script,
    the_job,
)
from coordinator.onto.source import Source
from coordinator.onto.stage import able
from coordinator.onto.waiting import PATIENCE_S
from coordinator.rekey import devices
from schemas import events as e
from schemas import topics
from schemas.ids import DeviceId
from schemas.limits import TEXT_CHARS_MAX

COMMIT_POLL_S: Final = 0.1
UNRECORDED: Final = "no answer was recorded"
RECORDED: Final = "as recorded"


async def play_devices(ports: Ports, source: Source, dial: Dial, speed: float, job: str = "") -> Report:
    """Play the devices of ``job`` to the coordinator that ``dial`` leads to.

    Raises `coordinator.onto.OntoRefused`, `broker.bus.BusError`.
    """
    script = read_script(source.entries(), the_job(source.entries(), job))
    _require_content(source, script)
    played = {}
    for name in script.played:
        own, folder = source.device(name), source.directory / devices.FOLDER / name
        bus = dial(source.member(own), [topics.down(own.federation, DeviceId(name))])
        played[name] = Played(ports, own, script.job.id, bus, folder / "sequence")
    stage = _Stage(ports, source, script, played, Pace(ports.clock, speed))
    try:
        async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
            for device in played.values():
                await stack.enter_async_context(device.connected(tasks))
            await stage.play()
    except BaseExceptionGroup as group:
        raise service.innermost(group) from group
    return stage.report


def _require_content(source: Source, script: Script) -> None:
    folded = {step.asked for step in script.steps if isinstance(step, Judged) and step.folded}
    for step in script.steps:
        if isinstance(step, Received) and step.asked in folded:
            source.require_content(script.job.id, step.round, step.recipient, step.digest)
            return


class _Stage:
    def __init__(
        self, ports: Ports, source: Source, script: Script, played: dict[str, Played], pace: Pace
    ) -> None:
        self._ports, self._source, self._script, self._played = ports, source, script, played
        self._pace = pace
        self._job = script.job.id
        self._draws = list(script.drawn())
        self._able: set[str] | None = None
        self._requests: dict[Asked, e.TrainingRequest] = {}
        self._taken: dict[str, set[int]] = {name: set() for name in played}
        self.report = Report(f"{self._job} by {len(played)} devices", "update to receipt", str(pace))

    async def play(self) -> None:
        """All of it, or until somebody is silent."""
        try:
            await self._make_able({device for device, _ in self._draws[0].asked})
            for step in self._script.steps:
                await self._pace.until(step.run_s)
                await self._step(step)
            await self._compare()
        except Silence as silence:
            self.report.stopped = str(silence)

    async def _step(self, step: Step) -> None:
        match step:
            case Drawn():
                await self._drawn(step)
            case Accepted():
                request = self._requests[step.asked]
                await self._played[step.asked[0]].say(e.Accept(job=request.job, request=request.request))
            case Declined():
                # For some reasons it would not be asked again, unless it said anew what it can do in time.
                again = self._able is not None and step.asked[0] in self._able
                reason = "busy" if again else step.reason
                await self._decline(step.asked, reason, f"{step.reason}: {step.text}", RECORDED)
            case Received():
                await self._update(step)
            case Judged():
                await self._verdict(step)
            case Silent():
                for asked in step.asked:
                    await self._decline(asked, "busy", UNRECORDED, UNRECORDED)

    async def _make_able(self, devices: set[str]) -> None:
        """From now on these devices can be asked, and no others."""
        for name, device in self._played.items():
            if self._able is None or (name in devices) != (name in self._able):
                await device.report(able(self._script, name, devices))
        self._able = devices

    async def _drawn(self, step: Drawn) -> None:
        deadline_s = self._script.job.spec.deadline_s
        patience_s = PATIENCE_S + (deadline_s if step.again else 0.0)
        for asked in step.asked:
            what = f"request for round {step.round} of {self._job}"
            look = partial(self._new_request, asked[0], step.round)
            say = partial(self._ask, asked[0], step)
            request = await self._played[asked[0]].heard(look, what, say, patience_s)
            self._requests[asked] = request
            self._taken[asked[0]].add(request.request)
        base = self._requests[step.asked[0]].base if step.asked else step.base
        if base != step.base:
            self.report.differs(step.round, "", "base", step.base.hex(), base.hex())
        await self._decline_others(step)
        if step.asked:
            following = self._draws[self._draws.index(step) + 1 :]
            if following:
                await self._make_able({device for device, _ in following[0].asked})
            elif not self._script.finished:
                await self._make_able(set())  # the recording ends here

    def _new_request(self, name: str, round_: int) -> e.TrainingRequest | None:
        for number, request in self._played[name].requests.items():
            if request.round == round_ and number not in self._taken[name]:
                return request
        return None

    async def _ask(self, name: str, step: Drawn) -> None:
        await self._decline_others(step)  # the round before may wait for one of them
        await self._played[name].ask()

    async def _decline_others(self, step: Drawn) -> None:
        """Whoever is asked, and was not asked by the time of ``step`` in the recording, has no answer."""
        waited = {name for name, _ in step.asked}
        for name, device in self._played.items():
            for number, request in list(device.requests.items()):
                other = name not in waited or request.round < step.round
                if other and number not in self._taken[name]:
                    self._taken[name].add(number)
                    asked = name, -number
                    self._requests[asked] = request
                    await self._decline(asked, "busy", UNRECORDED, UNRECORDED)

    async def _decline(self, asked: Asked, reason: str, text: str, counted: str) -> None:
        request = self._requests[asked]
        self.report.declined[counted] += 1
        decline = e.Decline(
            job=request.job, request=request.request, reason=reason, text=text[:TEXT_CHARS_MAX]
        )
        await self._played[asked[0]].say(decline)

    async def _update(self, step: Received) -> None:
        request = self._requests[step.asked]
        with self._source.update(self._job, step.round, step.recipient, step.digest) as found:
            device = self._played[step.asked[0]]
            was = {"request": step.asked[1], "base": step.base}
            offer = Offer(self._ports, device.own, request, found, was)
            self.report.latencies_s.append(await device.offer(offer))
            self.report.played += 1
            if device.receipts[request.request].digest != offer.sealed.seal.body:
                self.report.differs(step.round, step.asked[0], "receipt", "of this update", "of another")

    async def _verdict(self, step: Judged) -> None:
        name, number = step.asked[0], self._requests[step.asked].request
        device = self._played[name]
        verdict = await device.verdict(number, f"verdict on its update of round {step.round}")
        if verdict.folded:
            self.report.accepted += 1
        else:
            self.report.rejected[kind_of(verdict.reason)] += 1
        told = ["folded" if one.folded else one.reason for one in (step, verdict)]
        if kind_of(told[0]) != kind_of(told[1]):
            self.report.differs(step.round, name, "verdict", *told)

    async def _compare(self) -> None:
        """The newest version with the last one of the recording."""
        last = self._script.versions[-1]
        device = self._played[self._draws[0].asked[0][0]]
        try:
            async with asyncio.timeout(PATIENCE_S):
                newest = await device.newest()
                while newest.version < last.number:
                    await self._decline_others(self._draws[-1])
                    await asyncio.sleep(COMMIT_POLL_S)
                    newest = await device.newest()
        except TimeoutError:
            raise Silence(f"the coordinator makes no version {last.number} of {self._job}") from None
        equal = newest.version == last.number and newest.model == last.model
        self.report.final = {
            "version": newest.version,
            "recorded": last.model.hex(),
            "played": newest.model.hex(),
            "equal": equal,
        }
