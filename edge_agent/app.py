"""The resident agent: one task group around the ledger.

An update's way: `listen.Gate` makes the request durable and accepts → `models` pulls the version it is
based on → `trainer` has it trained and sealed in a worker → `outbox` offers the ciphertext until the
coordinator's receipt. Each step is durable before the next, so a crash repeats work and loses none.
When a job ends, `finals` fetches its last version for the owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from broker import service
from broker.bus import Bus, BusUndelivered, Connected, Delivery
from broker.mailbox import Mailbox, Sequencer
from broker.ports import Ports
from edge_agent import tasks
from edge_agent.config import Config
from edge_agent.finals import Finals
from edge_agent.identity import SEQUENCE_FILE, Identity, save
from edge_agent.kept import Shelf
from edge_agent.ledger import Ledger, RequestKey, RequestState
from edge_agent.listen import Complaints, Ears, Gate
from edge_agent.models import Models
from edge_agent.outbox import Outbox
from edge_agent.presence import UNKNOWN_MACHINE, Machine, Presence
from edge_agent.trainer import Trainer
from schemas import chunks, envelope, events
from schemas.errors import WireError
from schemas.jobs import JOB_RUNNING

log: Final = logging.getLogger("fedbus.agent")

ANSWERS_MAX: Final = 256
PASSING: Final = frozenset({"orphan", "replayed", "sender", "stale", "version"})
"""Refusals after which the same update may be taken later; after all others it never is."""


class RevokedHere(Exception):
    """The coordinator ended this device's membership; its keys stay, its models are gone."""


class Agent:
    """A member of a federation, at work. The caller holds the directory's lock.

    ``bus`` is not entered yet. `run` ends when cancelled (cleanly: the worker is gone), or raises
    `RevokedHere`, `broker.bus.BusRefused`, or OSError when the disk refuses to remember.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        ports: Ports,
        bus: Bus,
        identity: Identity,
        *,
        machine: Machine = UNKNOWN_MACHINE,
        installed: Callable[[], Collection[str]] = tasks.installed,
    ) -> None:
        self._directory = directory
        self._config = config
        self._ports = ports
        self._bus = bus
        self._identity = identity
        self._box = identity.keys().box
        self._ledger = Ledger(ports.files, directory)
        self._mailbox = Mailbox(
            bus,
            identity.federation,
            identity.signing,
            Sequencer(ports.files, directory / SEQUENCE_FILE),
            ports.entropy,
        )
        self._shelf = Shelf(ports.files, ports.clock, directory)
        self._models = Models(ports, self._shelf, self._pull)
        self._aside = Models(ports, self._shelf, self._pull, behind=self._models)
        self._outbox = Outbox(ports, directory, self._mailbox, identity.up_topic)
        self._trainer = Trainer(
            ports, directory, config, identity, self._ledger, self._models, self._outbox, self._answer
        )
        self._ears = Ears(identity, self._ledger)
        self._complaints = Complaints(ports.clock)
        self._gate = Gate(ports.files, identity, self._ledger, config, installed)
        self._presence = Presence(ports.files, identity, self._ledger, config, machine, installed, self._send)
        self._finals = Finals(
            self._ledger,
            self._shelf,
            self._outbox.residuals,
            self._aside,
            identity,
            self._send,
            self._presence.ask,
        )
        self._answers: asyncio.Queue[events.Event] = asyncio.Queue(ANSWERS_MAX)

    async def run(self) -> None:
        """Work until cancelled."""
        self._refuse_revoked()
        self._recover()
        log.info("device %s of federation %s starts", self._identity.device, self._identity.federation.hex())
        try:
            async with self._bus, asyncio.TaskGroup() as group:
                group.create_task(self._listen(), name="listen")
                group.create_task(self._presence.run(), name="presence")
                group.create_task(self._send_answers(), name="answers")
                group.create_task(self._outbox.run(), name="outbox")
                group.create_task(self._trainer.run(), name="trainer")
                group.create_task(self._finals.run(), name="finals")
                service.notify("READY=1")  # whether or not the broker can be reached now
        except BaseExceptionGroup as group_error:
            raise service.innermost(group_error) from group_error

    def _refuse_revoked(self) -> None:
        if self._ledger.data.revoked:
            self._finals.remove_all()  # at a start, too: the life before may have ended just then
            raise RevokedHere(
                f"device {self._identity.device}: revoked ({self._ledger.data.revoked}); "
                f"ask the operator for a new token and enrol in a new directory"
            )

    def _recover(self) -> None:
        """Make files and ledger agree again after a crash at any point."""
        wanted = [record.key for record in self._ledger.held()]
        whole = self._outbox.restore(wanted)
        for record in self._ledger.held():
            if record.key in whole and record.state is RequestState.ACCEPTED:
                self._ledger.settle(record.key, RequestState.MADE)
            elif record.key not in whole and record.state is RequestState.MADE:
                log.error("an update is missing in the outbox", extra=_fields(record.key))
                self._ledger.settle(record.key, RequestState.CLOSED)
        for path in list(self._ledger.lost_files()):
            self._ports.files.remove(path)
        self._finals.tidy()

    async def _listen(self) -> None:
        async for arrival in self._bus.incoming():
            if isinstance(arrival, Connected):
                log.info("connected to the broker (%d)", arrival.count)
                self._ledger.data.connected_wall_s = self._ports.clock.wall_s()
                self._ledger.save()
                self._models.again()
                self._aside.again()
                self._outbox.again()
                self._presence.ask()
            else:
                await self._take(arrival)

    async def _take(self, delivery: Delivery) -> None:
        payload = delivery.payload
        try:
            if payload.startswith(envelope.MAGIC):
                self._hear(self._ears.hear(payload))
            elif payload.startswith(chunks.MAGIC):
                self._take_chunk(payload)
        except WireError as error:
            self._complaints.add(error)
        await delivery.ack()

    def _take_chunk(self, payload: bytes) -> None:
        chunk = chunks.parse_chunk(payload)
        try:
            _ = self._models.take(chunk) or self._aside.take(chunk)
        except OSError as error:
            # It will be pulled again; by then the owner may have made room.
            log.error("a model chunk can't be stored (%s); free space", error)  # noqa: TRY400  # for people

    def _hear(self, event: events.FromCoordinator) -> None:
        match event:
            case events.TrainingRequest():
                self._requested(event)
            case events.Grant():
                self._outbox.grant(event.transfer, event.chunks)
            case events.Receipt():
                self._receipted(event)
            case events.Verdict():
                word = "folded into the model" if event.folded else f"rejected: {event.reason}"
                extra = {**_fields((event.job, event.request)), "round": event.round}
                log.info("verdict on the update: %s", word, extra=extra)
                self._ledger.data.verdict = event
                self._ledger.save()
            case events.StateReply():
                self._presence.answered()
                self._close([(ref.job, ref.request) for ref in event.closed])
                self._finals.look({ref.job for ref in event.requests})
            case events.JobFinished():
                log.info("job %s at version %d", event.state, event.version, extra={"job": event.job})
                self._close_job(event.job)
                self._finals.ended(event.job)
            case events.ModelOffer():
                if event.state != JOB_RUNNING:
                    self._close_job(event.job)
                self._finals.offered(event)
            case events.Stale():
                self._mailbox.sequencer.skip_beyond(event.high)
                stale = self._outbox.by_transfer(event.transfer)
                self._outbox.offer(stale.key) if stale else self._presence.ask()
            case events.Refusal():
                self._refused(event)
            case events.Enrolled():
                self._enrolled()
            case events.Revoked():
                self._revoked(event)
            case events.OfferRead():
                self._outbox.was_read(event.transfer, event.seq)
            case events.Bitmap():
                pass  # grants say what to send

    def _requested(self, request: events.TrainingRequest) -> None:
        answer = self._gate.admit(request)
        if answer is None:
            self._outbox.offer((request.job, request.request))
            return
        self._answer(answer)
        if isinstance(answer, events.Accept):
            self._trainer.wake()
            if any(r.job == request.job and r.number < request.request for r in self._ledger.waiting()):
                self._presence.ask()  # an older one of this job may be closed by now

    def _receipted(self, receipt: events.Receipt) -> None:
        key = receipt.job, receipt.request
        entry = self._outbox.find(key)
        if entry is not None and entry.digest != receipt.digest:
            log.warning("another update was receipted first for this request", extra=_fields(key))
        known = self._ledger.find(key)
        if known is not None and known.state is not RequestState.RECEIPTED:
            self._ledger.settle(key, RequestState.RECEIPTED)
            log.info("receipted: journal index %d", receipt.index, extra=_fields(key))
        self._outbox.remove(key)
        self._trainer.stop(key)

    def _close(self, keys: Collection[RequestKey]) -> None:
        """Stop training these; updates that are made already are still sent."""
        for key in keys:
            record = self._ledger.find(key)
            if record is not None and record.state is RequestState.ACCEPTED:
                self._ledger.settle(key, RequestState.CLOSED)
                self._trainer.stop(key)
                log.info("closed before it was trained", extra=_fields(key))

    def _close_job(self, job: str) -> None:
        self._close([record.key for record in self._ledger.waiting() if record.job == job])

    def _refused(self, event: events.Refusal) -> None:
        if event.code == "closed" and self._finals.refused(event.transfer):
            return
        entry = self._outbox.by_transfer(event.transfer)
        if entry is None or event.code in PASSING:
            extra = _fields(entry.key) if entry else {}
            log.warning("the coordinator refused a message (%s): %s", event.code, event.text, extra=extra)
            if event.code == "closed":
                self._presence.ask()  # a model that we pull: is its request still open?
            return
        level = logging.WARNING if event.code == "closed" else logging.ERROR
        text = "the coordinator refused an update for good (%s): %s"
        log.log(level, text, event.code, event.text, extra=_fields(entry.key))
        self._ledger.settle(entry.key, RequestState.CLOSED)
        self._outbox.remove(entry.key)

    def _enrolled(self) -> None:
        if not self._identity.active:
            self._identity = self._presence.identity = replace(self._identity, active=True)
            save(self._ports.files, self._directory, self._identity)
            self._presence.ask()

    def _revoked(self, event: events.Revoked) -> None:
        self._ledger.data.revoked = event.reason or "no reason given"
        self._ledger.save()
        self._refuse_revoked()

    async def _send(self, event: events.Event) -> None:
        await self._mailbox.send(self._identity.up_topic, self._box, event)

    async def _pull(self, pull: events.ChunkPull) -> None:
        if self._bus.problem:  # by the time that a connection stands, this pull may be out of date
            raise BusUndelivered(self._bus.problem)
        await self._send(pull)

    def _answer(self, answer: events.Event) -> None:
        if self._answers.full():
            # Whatever was lost so comes up again when the coordinator repeats its request.
            self._answers.get_nowait()
        self._answers.put_nowait(answer)

    async def _send_answers(self) -> None:
        while True:
            answer = await self._answers.get()
            with suppress(BusUndelivered):
                await self._send(answer)


def _fields(key: RequestKey) -> dict[str, object]:
    return {"job": key[0], "request": key[1]}
