"""Recorded requests, put to one agent under test, whose answers are compared with the recorded ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Final

from broker import service
from broker.bus import Bus, BusUndelivered, Connected
from broker.mailbox import Mailbox, Sequencer, read
from broker.ports import Ports
from coordinator.onto import Silence
from coordinator.onto.arriving import Arriving
from coordinator.onto.compare import compare
from coordinator.onto.pace import Dial, Pace
from coordinator.onto.questions import Question, read_questions
from coordinator.onto.report import Report, kind_of
from coordinator.onto.source import Source
from coordinator.onto.waiting import PATIENCE_S, Waiting
from coordinator.rekey.export import SEQUENCE
from schemas import chunks, topics
from schemas import events as e
from schemas.envelope import MAGIC, Envelope, parse
from schemas.errors import WireError
from schemas.ids import DeviceId, model_request_id
from schemas.limits import RESEND_FIRST_S, TEXT_CHARS_MAX
from schemas.window import Window

REMEDY: Final = (
    "does an agent run on a fresh copy of the device's folder of this recording (devices/NAME), with this "
    "broker in its settings?"
)


async def ask_agent(
    ports: Ports, source: Source, dial: Dial, speed: float, device: str, job: str = ""
) -> Report:
    """Ask ``device`` again, at the broker that ``dial`` leads to, what it was asked.

    Raises `coordinator.onto.OntoRefused`, `broker.bus.BusError`.
    """
    asker = _Asker(ports, source, dial, speed, device, job)
    try:
        async with asyncio.TaskGroup() as tasks:
            await asker.run(tasks)
    except BaseExceptionGroup as group:
        raise service.innermost(group) from group
    return asker.report


class _Asker:
    def __init__(self, ports: Ports, source: Source, dial: Dial, speed: float, device: str, job: str) -> None:
        self._ports, self._source = ports, source
        self._agent = source.device(device)
        self._questions = read_questions(source, device, job)
        folded = next((one for one in self._questions if one.folded), None)
        if folded:
            asked = folded.request
            source.require_content(asked.job, asked.round, folded.key.id, folded.digest)
        self._pace = Pace(ports.clock, speed)
        federation, sequence = source.identity.federation, source.directory / SEQUENCE
        self._bus: Bus = dial(source.coordinator(), [topics.all_up(federation)])
        sequencer = Sequencer(ports.files, sequence)
        self._mailbox = Mailbox(self._bus, federation, source.identity.online, sequencer, ports.entropy)
        self._up, self._down = (of(federation, DeviceId(device)) for of in (topics.up, topics.down))
        self._waiting = Waiting(self._bus, device, REMEDY)
        self._window = Window()
        self._open: Question | None = None
        self._accepted = False
        self._declined: e.Decline | None = None
        self._arriving: Arriving | None = None
        self._content: bytes | None = None
        self._broken = ""
        """Why the update is none, with its code first."""
        self._receipts: dict[bytes, e.Receipt] = {}
        self._sent_s: dict[tuple[bytes, int], float] = {}
        self.report = Report(f"{device}'s agent", "request to update", str(self._pace))

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        async with self._bus:
            listening = tasks.create_task(self._listen(), name="listen")
            try:
                for question in self._questions:
                    await self._pace.until(question.run_s)
                    await self._ask(question)
            except Silence as silence:
                self.report.stopped = str(silence)
            finally:
                listening.cancel()
                await asyncio.wait([listening])

    async def _ask(self, question: Question) -> None:
        self._open, self._accepted, self._declined = question, False, None
        self._arriving, self._content, self._broken = None, None, ""
        began_s = self._ports.clock.monotonic_s()
        round_ = question.request.round

        async def say() -> None:
            if not self._accepted:
                await self._tell(question.request)

        await self._waiting.said(say)
        what = f"answer to the request of round {round_}"
        await self._waiting.heard(lambda: self._accepted or self._answer(), what, say)
        patience_s = max(question.request.deadline_s, PATIENCE_S)  # it trains
        await self._waiting.heard(self._answer, what, say, patience_s)
        if self._declined is None:
            self.report.latencies_s.append(self._ports.clock.monotonic_s() - began_s)
        self._compare(question)
        self._open = None

    def _answer(self) -> bool | None:
        return self._declined is not None or self._content is not None or bool(self._broken) or None

    def _compare(self, question: Question) -> None:
        report, round_, device = self.report, question.request.round, self._agent.device
        arrived, content = self._arriving, self._content
        played = f"decline: {self._declined.reason}" if self._declined else self._broken or "update"
        recorded = "update" if question.digest else f"decline: {question.reason}" if question.reason else ""
        if self._declined:
            report.declined[self._declined.reason] += 1
        else:
            report.played += 1
            report.accepted += not self._broken
            report.rejected += Counter([kind_of(self._broken)] if self._broken else [])
        if recorded and played != recorded:
            report.differs(round_, device, "answer", recorded, played)
        elif recorded == "update" and arrived and content is not None:
            job, digest = question.request.job, question.digest
            with self._source.update(job, round_, question.key.id, digest) as found:
                compare(report, round_, device, found, arrived.update, content)

    async def _listen(self) -> None:
        async for item in self._bus.incoming():
            if isinstance(item, Connected):
                continue
            if item.topic == self._up:
                with suppress(WireError, BusUndelivered):  # the agent says again what has no answer
                    await self._take(item.payload)
                self._waiting.wake()
            await item.ack()

    async def _take(self, payload: bytes) -> None:
        if payload.startswith(chunks.MAGIC):
            await self._chunk(chunks.parse_chunk(payload))
        elif payload.startswith(MAGIC):
            envelope = parse(payload)
            if envelope.clear.recipient == self._source.identity.box.id:
                await self._hear(envelope)
            else:
                await self._offered(envelope)

    async def _hear(self, envelope: Envelope) -> None:
        ours = self._source.identity
        signer = self._agent.signing.public
        opened = read(envelope, signer, self._window, ours.box, ours.federation)
        self._window = self._window.after(envelope.order)
        open_ = self._open.request if self._open else None
        match e.decode_from_device(opened.inner):
            case e.StateRequest() as asked:
                mine = [e.RequestRef(open_.job, open_.request)] if open_ else []
                closed = [one for one in asked.requests if one not in mine]
                await self._tell(e.StateReply(requests=mine, closed=closed))
                if open_ and mine[0] not in asked.requests:
                    await self._tell(open_)
            case e.ChallengeAnswer():
                await self._tell(e.Enrolled())
            case e.Accept() as accept if open_ and _about(accept, open_):
                self._accepted = True
            case e.Decline() as decline if open_ and _about(decline, open_):
                self._declined = decline
            case e.ChunkPull() as pull:
                await self._pulled(pull)
            case e.ModelRequest() as wanted:
                transfer = model_request_id(wanted.job)
                await self._tell(e.Refusal(code="closed", text="this is a replay", transfer=transfer))
            case _:
                pass

    async def _pulled(self, pull: e.ChunkPull) -> None:
        """Send what is pulled, and again what was sent some time ago: it was lost."""
        store, question = self._source.store, self._open
        if question is None or question.manifest.transfer() != pull.transfer:
            return
        manifest = question.manifest
        store.restore(manifest.job, manifest.version)
        offered, now_s = store.by_transfer[pull.transfer], self._ports.clock.monotonic_s()
        for index in pull.chunks:
            sent_s = self._sent_s.get((pull.transfer, index))
            if index >= len(manifest.chunks) or (sent_s is not None and now_s - sent_s < RESEND_FIRST_S):
                continue
            self._sent_s[pull.transfer, index] = now_s
            sealed = await self._ports.offload.run(store.read_chunk, offered, index)
            await self._bus.publish(self._down, chunks.pack_chunk(pull.transfer, index, sealed))

    async def _offered(self, envelope: Envelope) -> None:
        if receipt := self._receipts.get(envelope.clear.recipient):
            await self._tell(receipt)
            return
        question = self._open
        if question is None or envelope.clear.recipient != question.key.id:
            text = "no open request has this key"
            await self._tell(e.Refusal(code="closed", text=text, transfer=envelope.transfer))
            return
        try:
            envelope.check_signature(self._agent.signing.public)
            if self._arriving is None or self._arriving.envelope.digest != envelope.digest:
                self._arriving = Arriving(question, envelope, self._source.identity.federation)
        except WireError as error:
            await self._refuse(envelope, error)
            return
        await self._tell(e.OfferRead(transfer=envelope.transfer, seq=envelope.order.seq))
        have = chunks.bitmap(set(self._arriving.have))
        await self._tell(e.Bitmap(transfer=envelope.transfer, have=have))
        await self._go_on(self._arriving, question)

    async def _chunk(self, chunk: chunks.Chunk) -> None:
        arriving = self._arriving
        if self._open and arriving and chunk.transfer == arriving.envelope.transfer and arriving.take(chunk):
            await self._go_on(arriving, self._open)

    async def _go_on(self, arriving: Arriving, question: Question) -> None:
        """Grant more, or give the receipt and a verdict."""
        if not arriving.whole:
            await self._tell(e.Grant(transfer=arriving.envelope.transfer, chunks=arriving.grant()))
            return
        try:
            self._content = arriving.content()
        except WireError as error:
            await self._refuse(arriving.envelope, error)
            return
        journal, request = self._source.journal, question.request
        receipt = e.Receipt(
            job=request.job,
            request=request.request,
            digest=arriving.envelope.digest,
            index=journal.count,
            head=journal.head,
        )
        self._receipts[question.key.id] = receipt
        await self._tell(receipt)
        verdict = e.Verdict(
            job=request.job, request=request.request, folded=True, reason="", round=request.round
        )
        await self._tell(verdict)

    async def _refuse(self, envelope: Envelope, error: WireError) -> None:
        """The agent gives the update up."""
        self._broken = f"{error.code}: {error}"
        await self._tell(
            e.Refusal(code=error.code, text=str(error)[:TEXT_CHARS_MAX], transfer=envelope.transfer)
        )

    async def _tell(self, event: e.Event) -> None:
        await self._mailbox.send(self._down, self._agent.box.public, event)


def _about(answer: e.Accept | e.Decline, request: e.TrainingRequest) -> bool:
    return (answer.job, answer.request) == (request.job, request.request)
