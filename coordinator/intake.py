"""The way in: size → signature → replay → durable → acknowledged. One delivery after the other is looked at;
what must be written first (an update's body) goes on beside, and each is acknowledged when it is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import structlog

from broker.bodies import Bodies
from broker.bus import Bus, Connected, Delivery
from broker.ports import Ports
from coordinator.dead_letters import TOPIC_CHARS_MAX, DeadLetter, DeadLetters
from coordinator.dispatch import Dispatch
from coordinator.entries import Message
from coordinator.inputs import DeviceSaid, JoinAsked, UpdateCompleted
from coordinator.keystore import Identity
from coordinator.ledger import Ledger
from coordinator.state import Device
from coordinator.store import Store
from coordinator.stored import stored, stored_name
from coordinator.uploads import Uploads
from schemas import chunks, enrolment, envelope, topics
from schemas.envelope import Envelope, open_envelope
from schemas.errors import (
    Forged,
    Malformed,
    Orphan,
    Replayed,
    TooOld,
    UnknownSender,
    UnknownVersion,
    WireError,
    WrongRecipient,
)
from schemas.events import Refusal, Stale, Update, decode_from_device
from schemas.ids import key_id
from schemas.limits import MESSAGE_BYTES_MAX, RESEND_FIRST_S, SMALL_BODY_BYTES_MAX, TEXT_CHARS_MAX

WRITES_MAX = 16  # bodies being written at the same time
REFUSAL_EVERY_S = 30.0  # at most one refusal, and one line in the log, per device and reason in this time
SAID_MAX = 4_096

log = structlog.get_logger()


class Intake:
    """Takes what the bus delivers. A bad message costs its sender an answer, and the coordinator nothing."""

    def __init__(
        self,
        ledger: Ledger,
        identity: Identity,
        dispatch: Dispatch,
        store: Store,
        bodies: Bodies,
        ports: Ports,
        spool: Path,
    ) -> None:
        self._ledger = ledger
        self._identity = identity
        self._dispatch = dispatch
        self._bodies = bodies
        self._ports = ports
        self.uploads = Uploads(ledger, dispatch, store, bodies, ports, spool, self.completed)
        self.dead = DeadLetters()
        self.dropped = dispatch.dropped
        self._writes = asyncio.Semaphore(WRITES_MAX)
        self._said_at_s: dict[tuple[str, str], float] = {}
        self._held: dict[
            Delivery, float
        ] = {}  # since when, not acknowledged yet: bounded by the bus's window

    def transfers(self) -> dict[str, int]:
        """How much is under way, for people."""
        up, down = self.uploads.credits, self._dispatch.downlink.credits
        return {
            "uploads": self.uploads.open,
            "uploads_waiting": up.waiting,
            "uploads_granted_bytes": up.granted_bytes,
            "offers_put_off": self.uploads.put_off,
            "pulls": len(down.lines),
            "pulls_waiting": down.waiting,
            "pulls_granted_bytes": down.granted_bytes,
        }

    async def run(self, bus: Bus) -> None:
        """Read the bus until cancelled. Raises `broker.bus.BusRefused`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.uploads.run(lambda: self._reads(bus)), name="uploads")
            async for item in bus.incoming():
                if isinstance(item, Connected):
                    log.info("connected to the broker", connection=item.count)
                else:
                    self._held[item] = self._ports.clock.monotonic_s()
                    await self._ledger.journal.room()
                    await self._take(item, tasks)

    def _reads(self, bus: Bus) -> bool:
        """Whether what lies at the broker comes in: not while we are cut off, or wait for the disk."""
        now_s = self._ports.clock.monotonic_s()
        return not bus.problem and now_s - next(iter(self._held.values()), now_s) < RESEND_FIRST_S

    async def _take(self, delivery: Delivery, tasks: asyncio.TaskGroup) -> None:
        try:
            done = await self._look(delivery, tasks)
        except WireError as error:
            self._bury(delivery, error)
            done = None
        if done is None:
            await self._ack(delivery)
        else:
            tasks.create_task(self._ack_after(done, delivery), name="ack")

    async def _ack_after(self, done: Awaitable[object], delivery: Delivery) -> None:
        await done
        await self._ack(delivery)

    async def _ack(self, delivery: Delivery) -> None:
        self._held.pop(delivery, None)  # one that came twice may be gone
        await delivery.ack()

    async def _look(self, delivery: Delivery, tasks: asyncio.TaskGroup) -> Awaitable[object] | None:
        """What must be done before the delivery may be acknowledged; None for nothing."""
        data = delivery.payload
        if len(data) > MESSAGE_BYTES_MAX:
            raise Malformed(f"a message of {len(data)} bytes")
        if data.startswith(chunks.MAGIC):
            device = topics.up_device(delivery.topic, self._identity.federation)
            return await self.uploads.chunk(device, chunks.parse_chunk(data))
        if data.startswith(enrolment.JOIN_MAGIC):
            join, by_token, packed = enrolment.open_join(data, self._identity.enrolment)
            if (join.root, join.federation) != (self._identity.root, self._identity.federation):
                raise WrongRecipient("the join is for another federation")
            if join.device != topics.up_device(delivery.topic, self._identity.federation):
                raise Forged("the join came on another device's topic")
            challenge = self._ports.entropy.random_bytes(32)
            asked = JoinAsked(join=join, packed=packed, by_token=by_token, challenge=challenge)
            return self._ledger.submit(asked)
        return self._envelope(envelope.parse(data), tasks)

    def _envelope(self, received: Envelope, tasks: asyncio.TaskGroup) -> Awaitable[object] | None:
        state = self._ledger.state
        name = state.by_sender.get(received.clear.sender)
        if name is None:
            raise UnknownSender("no device of this federation has this key")
        device = state.devices[name]
        if received.clear.sender != key_id(device.signing):
            raise UnknownSender(f"device {name} enrolled again, with other keys")
        received.check_signature(device.signing)
        if received.clear.federation != self._identity.federation:
            raise WrongRecipient("the message belongs to another federation")
        try:
            if received.clear.recipient != self._identity.box.id:
                return self._update(device, received, tasks)
            return self._said(device, received)
        except TooOld as error:
            self._dispatch.tell(device.id, Stale(high=error.high_water, transfer=received.transfer))
            raise
        except Replayed:
            raise
        except WireError as error:
            self.refuse(device.id, error.code, str(error), received.transfer)
            raise

    def _said(self, device: Device, received: Envelope) -> Awaitable[object]:
        device.window.check(received.order)
        if received.clear.chunks:
            raise Malformed("only an update has content in chunks")
        if len(received.body) > SMALL_BODY_BYTES_MAX:
            raise Malformed(f"a body of {len(received.body)} bytes; {SMALL_BODY_BYTES_MAX} may travel here")
        event = decode_from_device(
            open_envelope(received, self._identity.box, self._identity.federation).inner
        )
        if isinstance(event, Update):
            raise WrongRecipient("an update must be sealed to the key of its request")
        message = Message(
            device=device.id,
            header=received.header_bytes,
            signature=received.signature,
            body=received.body,
        )
        said = DeviceSaid(device=device.id, order=received.order, event=event)
        return self._ledger.submit(said, message)

    def _update(
        self, device: Device, received: Envelope, tasks: asyncio.TaskGroup
    ) -> Awaitable[object] | None:
        state = self._ledger.state
        known = state.by_update_key.get(received.clear.recipient)
        request = state.jobs[known[0]].requests.get((known[1], known[2])) if known else None
        if known is None or request is None or known[1] != device.id:
            self.refuse(device.id, "closed", "no open request of this device has this key", received.transfer)
            raise WrongRecipient("sealed to no request's key of this device")
        if request.digest:
            self._ledger.answer_again(known[0], request)
            return None
        device.window.check(received.order)
        if received.clear.chunks:
            return self.uploads.offer(device.id, known[0], received)
        return tasks.create_task(self._keep(device.id, received), name="keep")

    async def _keep(self, device: str, received: Envelope) -> None:
        """Make an update that came whole durable, then hand it on."""
        async with self._writes:
            name = stored_name(received.clear.recipient, received.digest)
            await self._ports.offload.run(self._store_body, name, received)
            await self.completed(device, received)

    def _store_body(self, name: str, received: Envelope) -> None:
        self._bodies.put(name, [stored(received)])
        self._bodies.sync()

    async def completed(self, device: str, received: Envelope) -> None:
        """All bytes of an update are durable: record it. The window may have moved on since it was read."""
        update = UpdateCompleted(
            device=device,
            sender=received.clear.sender,
            order=received.order,
            key=received.clear.recipient,
            digest=received.digest,
        )
        message = Message(device=device, header=received.header_bytes, signature=received.signature, body=b"")
        await self._ledger.submit(update, message)

    def refuse(self, device: str, code: str, text: str, transfer: bytes) -> None:
        """Tell a device that its message was not taken; not more often than makes sense."""
        if self._say_now(f"to {device}", code):
            self._dispatch.tell(device, Refusal(code=code, text=text[:TEXT_CHARS_MAX], transfer=transfer))

    def _say_now(self, about: str, code: str) -> bool:
        """Whether to speak about this now: not again within `REFUSAL_EVERY_S`, and in bounded memory."""
        now_s = self._ports.clock.monotonic_s()
        if now_s - self._said_at_s.get((about, code), -REFUSAL_EVERY_S) < REFUSAL_EVERY_S:
            return False
        if len(self._said_at_s) >= SAID_MAX:
            self._said_at_s.clear()
        self._said_at_s[about, code] = now_s
        return True

    def _bury(self, delivery: Delivery, error: WireError) -> None:
        topic = delivery.topic[:TOPIC_CHARS_MAX]
        claimed = topic.rsplit("/", 1)[-1]
        text = str(error)[:TEXT_CHARS_MAX]
        self.dead.add(
            DeadLetter(self._ports.clock.wall_s(), topic, claimed, error.code, text, len(delivery.payload))
        )
        if isinstance(error, Replayed | TooOld | Orphan):
            log.debug("message not taken", claimed=claimed, code=error.code, cause=text)
            return
        if self._say_now(claimed, error.code):
            log.warning("message not taken", claimed=claimed, code=error.code, cause=text)
        if isinstance(error, UnknownVersion) and claimed in self._ledger.state.devices:
            device = topics.up_device(delivery.topic, self._identity.federation)
            self.refuse(device, error.code, text, b"")
