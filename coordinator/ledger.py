"""The log and the core together: an input is decided, made durable, and only then acted upon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from broker.journal import Journal, Mark
from broker.ports import Clock, Files, Offload
from coordinator import receipts
from coordinator.core import BEHAVIOUR, step
from coordinator.effects import Effect
from coordinator.entries import Message, Sent, Turned, encode_entry
from coordinator.facts import AlarmRaised, AnyFact, Heard, VersionCommitted
from coordinator.image import Recovered, encode_image
from coordinator.inputs import AnyInput, DeviceSaid, Moment, Started, Ticked, UpdateCompleted
from coordinator.recovery import open_recovered
from coordinator.snapshots import Snapshots
from coordinator.state import Request
from coordinator.turn import Turn

log = structlog.get_logger()
FLUSH_S = 1.0  # how long what is not urgent may wait for its sync
SNAPSHOT_PARTS = 4  # a snapshot is worth its bytes when the log grew by this part of them since the last one
Perform = Callable[[Effect, Mark], Awaitable[None]]


class Ledger:
    """Owns the state. `submit` decides at once; its effects follow when the facts are durable."""

    def __init__(self, journal: Journal, recovered: Recovered, clock: Clock, snapshots: Snapshots) -> None:
        self.journal = journal
        self.state = recovered.state
        self._turns = recovered.turns
        self._snapshots = snapshots
        self._image: tuple[asyncio.Future[Mark], bytes] | None = None  # the newest that is not written yet
        self._imaged = asyncio.Event()
        self._waits = asyncio.Event()  # something was appended that is not urgent
        self._image_bytes = self._grown_bytes = 0
        self._clock = clock
        self._run_from_s = recovered.run_s - clock.monotonic_s()
        self._decided: asyncio.Queue[tuple[asyncio.Future[Mark] | None, list[Effect]]] = asyncio.Queue()

    @classmethod
    def open(cls, files: Files, directory: Path, federation: bytes, clock: Clock) -> Ledger:
        """Recover what a state directory holds. Raises `broker.journal.JournalError`."""
        journal, recovered = open_recovered(files, directory, federation)
        return cls(journal, recovered, clock, Snapshots(files, directory, federation))

    def now(self) -> Moment:
        return Moment(self._run_from_s + self._clock.monotonic_s(), self._clock.wall_s())

    def submit(
        self, input_: AnyInput, message: Message | None = None, *, urgent: bool = True
    ) -> asyncio.Future[Mark]:
        """Decide about ``input_``; the future resolves when facts and input are durable.

        ``message`` is what is recorded in place of a device's opened message. What is not ``urgent`` is made
        durable together with what comes next, within `FLUSH_S` at the latest.
        Raises `coordinator.turn.CommandRefused` (nothing is recorded then).
        """
        moment = self.now()
        turn = step(self.state, moment, input_)
        if not turn.facts and not isinstance(input_, Ticked | Started):
            return self._answer(turn)  # nothing was decided: a join that was refused, an outcome told twice
        if isinstance(input_, (DeviceSaid, UpdateCompleted)):
            if message is None:
                raise ValueError("a device's message is recorded as it came")
            recorded: Turned = Turned(at=moment, behaviour=BEHAVIOUR, input=message, facts=turn.facts)
        else:
            recorded = Turned(at=moment, behaviour=BEHAVIOUR, input=input_, facts=turn.facts)
        done = self._append(encode_entry(recorded), urgent=urgent)
        self._turns += 1
        if any(isinstance(fact, VersionCommitted) for fact in turn.facts):
            self._take_image(done, moment)
        self._decided.put_nowait((done, turn.effects))
        if log.is_enabled_for(logging.INFO):
            for fact in turn.facts:
                self._say(fact)
        return done

    def _append(self, data: bytes, *, urgent: bool) -> asyncio.Future[Mark]:
        self._grown_bytes += len(data)
        if not urgent:
            self._waits.set()
        return self.journal.append(data, urgent=urgent)

    def _take_image(self, done: asyncio.Future[Mark], moment: Moment) -> None:
        """Of the state after the turn whose entry is ``done`` when it is durable. With a thousand devices it
        has megabytes, and is not made for every round."""
        if self._grown_bytes * SNAPSHOT_PARTS >= self._image_bytes:
            image = encode_image(Recovered(self.state, moment.run_s, self._turns))
            self._image, self._image_bytes, self._grown_bytes = (done, image), len(image), 0
            self._imaged.set()

    def _say(self, fact: AnyFact) -> None:
        """A line for people, with job, round, device and request where the fact has them."""
        if isinstance(fact, Heard):
            return
        fields: dict[str, str | int | float] = {}
        for name in fact.__struct_fields__:
            value = getattr(fact, name)
            if isinstance(value, bytes):
                value = value.hex()[:16]
            elif isinstance(value, list):
                value = len(value)
            if isinstance(value, str | int | float) and value != "":
                fields[name] = value
        if "request" in fields and (job := self.state.jobs.get(str(fields["job"]))):
            request = job.requests.get((str(fields["device"]), int(fields["request"])))
            fields |= {"round": request.round} if request else {}
        say = log.warning if isinstance(fact, AlarmRaised) or fields.get("problem") else log.info
        say(str(fact.__struct_config__.tag).replace("-", " "), **fields)

    def answer_again(self, job: str, request: Request) -> None:
        """Answer for an update that was received before. Behind all earlier decisions, so never too soon."""
        turn = Turn(self.state, self.now())
        receipts.answer(turn, job, request)
        self._answer(turn)

    def _answer(self, turn: Turn) -> asyncio.Future[Mark]:
        known: asyncio.Future[Mark] = asyncio.get_running_loop().create_future()
        known.set_result(Mark(self.journal.count, self.journal.head))
        self._decided.put_nowait((None, turn.effects))
        return known

    def tick(self) -> asyncio.Future[Mark]:
        """Time passed: what is due falls due, and the log keeps the time."""
        return self.submit(Ticked())

    def sent(self, device: str, header: bytes, inner: bytes) -> None:
        """Record a message to a device; nothing waits for it, so it costs no sync of its own."""
        entry = Sent(at=self.now(), device=device, header=header, inner=inner)
        self._append(encode_entry(entry), urgent=False).add_done_callback(_retrieve)

    async def run(self, offload: Offload, perform: Perform) -> None:
        """Make decisions durable and act on them, in order, until cancelled.

        Raises `broker.journal.JournalStopped` when the disk takes no more.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.journal.run(offload), name="journal")
            tasks.create_task(self._act(perform), name="effects")
            tasks.create_task(self._flush(), name="flush")
            tasks.create_task(self._keep_snapshots(offload), name="snapshots")

    async def _keep_snapshots(self, offload: Offload) -> None:
        """Write the newest image once the log holds durably what it is of; one at a time."""
        while True:
            await self._imaged.wait()
            self._imaged.clear()
            image, self._image = self._image, None
            if image is not None:
                await offload.run(self._snapshots.put, await image[0], image[1])

    async def _flush(self) -> None:
        while True:
            await self._waits.wait()
            self._waits.clear()
            await asyncio.sleep(FLUSH_S)
            self.journal.flush()

    async def _act(self, perform: Perform) -> None:
        while True:
            done, effects = await self._decided.get()
            # An answer alone has no entry. What it answers for may be durable only by now.
            mark = await done if done is not None else Mark(self.journal.count, self.journal.head)
            for effect in effects:
                await perform(effect, mark)


def _retrieve(done: asyncio.Future[Mark]) -> None:
    # A failure of the journal ends `run`; this only keeps the unwatched future from being reported too.
    if not done.cancelled():
        done.exception()
