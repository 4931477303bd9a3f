"""From effects to messages: seals, signs, records and sends what devices are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from hashlib import blake2b

import structlog
from msgspec.structs import replace as replace_field

from broker.bus import Bus, BusUndelivered
from broker.journal import Mark
from broker.mailbox import Mailbox
from broker.room import Room
from coordinator.downlink import Downlink
from coordinator.effects import AnswerJoin, SendChunks, SendModel, SendReceipt, SendRequest, Tell
from coordinator.keystore import Identity, KeyStore
from coordinator.ledger import Ledger
from coordinator.negotiation import asked_encoding
from coordinator.state import OPEN_REQUEST, Job, Request, RequestState
from coordinator.store import NO_VERSION, Store
from schemas import topics
from schemas.enrolment import Welcome, seal_welcome
from schemas.errors import WireError
from schemas.events import Event, ModelOffer, Receipt, Refusal, TrainingRequest, encode_event
from schemas.ids import DeviceId, model_request_id
from schemas.keys import Certificate, Kind, open_key_set, sign_struct
from schemas.limits import RESEND_CAP_S, RESEND_FIRST_S

TOLD_S = 2.0
LANES = 8  # senders side by side; one device's messages stay on one lane, in order
LANE_MESSAGES_MAX = 4_096
DEVICE_MESSAGES_MAX = 256  # of one device in its lane, so that none can take the others' place

log = structlog.get_logger()


class Dispatch:
    """The way out to the devices. What is lost on it is asked for again by the device, or sent again here."""

    def __init__(
        self,
        mailbox: Mailbox,
        ledger: Ledger,
        store: Store,
        keys: KeyStore,
        identity: Identity,
        room: Room,
    ) -> None:
        self._mailbox = mailbox
        self._ledger = ledger
        self._store = store
        self._keys = keys
        self._identity = identity
        self._sealing = asyncio.Lock()
        self._lanes: list[asyncio.Queue[tuple[str, Event | bytes | SendModel]]] = [
            asyncio.Queue(LANE_MESSAGES_MAX) for _ in range(LANES)
        ]
        self._sent_at_run_s: dict[tuple[str, str, int], tuple[float, float]] = {}
        self._unanswered = asyncio.Event()  # as far as is known
        self._queued: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._room = room
        self.downlink = Downlink(ledger, store, room, identity.federation, self.tell)

    def tell(self, device: str, event: Event | bytes | SendModel) -> None:
        """Queue a message to a device. Over the bounds it is dropped and counted: devices ask again."""
        if self._queued[device] >= DEVICE_MESSAGES_MAX:
            self.dropped[device] += 1
            return
        lane = self._lanes[blake2b(device.encode(), digest_size=1).digest()[0] % LANES]
        try:
            lane.put_nowait((device, event))
            self._queued[device] += 1
        except asyncio.QueueFull:
            self.dropped[device] += 1

    async def told(self, device: str) -> None:
        """Wait until all that was queued for a device is sent, but not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TOLD_S):
                while self._queued[device]:  # noqa: ASYNC110 - rare, and short
                    await asyncio.sleep(0.05)

    def perform(
        self, effect: Tell | AnswerJoin | SendRequest | SendReceipt | SendModel | SendChunks, mark: Mark
    ) -> None:
        """Carry out an effect that is a message."""
        match effect:
            case Tell():
                self.tell(effect.device, effect.event)
            case AnswerJoin():
                self.tell(effect.join.device, self._welcome(effect))
            case SendRequest():
                self._send_request(effect.job, effect.device, effect.request, RESEND_FIRST_S)
            case SendReceipt():
                self.tell(
                    effect.device,
                    Receipt(
                        job=effect.job,
                        request=effect.request,
                        digest=effect.digest,
                        index=mark.index,
                        head=mark.head,
                    ),
                )
            case SendModel():
                self.tell(effect.device, effect)
            case SendChunks():
                self.downlink.pull(effect)

    def _welcome(self, effect: AnswerJoin) -> bytes:
        join, identity = effect.join, self._identity
        certificate = b""
        if not effect.refused:
            keys = open_key_set(identity.key_set, identity.root, identity.federation)
            certificate = sign_struct(
                Kind.CERTIFICATE,
                identity.online,
                Certificate(
                    federation=identity.federation,
                    device=join.device,
                    entity=effect.entity,
                    signing=join.signing,
                    box=join.box,
                    key_set=keys.number,
                ),
            )
        welcome = Welcome(
            join=join.digest(),
            key_set=identity.key_set,
            certificate=certificate,
            challenge=effect.challenge,
            refused=effect.refused,
        )
        return seal_welcome(welcome, join.box, identity.online)

    def _send_request(self, job_id: str, device: str, number: int, again_after_s: float) -> None:
        request = self._request(job_id, device, number)
        if request is not None:
            now_s = self._ledger.now().run_s
            self._sent_at_run_s[job_id, device, number] = (now_s, again_after_s)
            self._unanswered.set()
            self.tell(device, request)

    def _request(self, job_id: str, device: str, number: int) -> TrainingRequest | None:
        job = self._ledger.state.jobs[job_id]
        request = job.requests.get((device, number))
        if request is None or job.round is None or request.state not in OPEN_REQUEST:
            return None
        version = job.base(request)
        previous = job.versions[version.number - 1].model if version.number else NO_VERSION
        offered = self._store.offer(job_id, version.number, version.model, previous, job.epoch)
        spec = job.spec
        layout, status = self._store.layout(job_id), self._ledger.state.devices[device].status
        local = spec.local.in_round(request.round, _seed(job, request))
        return TrainingRequest(
            job=job_id,
            request=number,
            round=request.round,
            base=version.model,
            task=spec.task,
            dataset=spec.data_name(),
            config=spec.config,
            local=local,
            manifest=offered.blob,
            layout=self._store.layout_blob(job_id),
            job_key=self._keys.job_key(job_id, job.epoch),
            update_key=request.key,
            chunk_bytes=spec.chunk_bytes,
            deadline_s=self._deadline_s(job),
            encoding=asked_encoding(spec, layout, status),
        )

    def _deadline_s(self, job: Job) -> float:
        """How long an update to a request may take. Requests of asynchronous jobs outlive their round."""
        if job.spec.asynchronous is not None or job.round is None:
            return job.spec.deadline_s
        return max(job.round.deadline_run_s - self._ledger.now().run_s, 1.0)

    async def _model_offer(self, asked: SendModel) -> Event:
        """The offer that was ordered, as it was decided: the state may be ahead of what is durable."""
        job = self._ledger.state.jobs[asked.job]
        version, spec = job.versions[asked.version], job.spec
        previous = job.versions[asked.version - 1].model if asked.version else NO_VERSION
        try:
            async with self._sealing:
                offered = await self._room.run(
                    self._store.offer,
                    job.id,
                    version.number,
                    version.model,
                    previous,
                    asked.epoch,
                    spec.chunk_bytes,
                )
            layout = self._store.layout_blob(job.id)
        except (FileNotFoundError, ValueError, WireError) as error:
            log.warning("a model that a device asked for is lost", job=job.id, cause=str(error))
            text = f"version {version.number} of job {job.id} is not kept any more"
            return Refusal(code="closed", text=text, transfer=model_request_id(job.id))
        return ModelOffer(
            job=job.id,
            version=version.number,
            state=asked.state,
            manifest=offered.blob,
            layout=layout,
            task=spec.task,
            config=spec.config,
            job_key=self._keys.job_key(job.id, asked.epoch),
        )

    def resend_due(self) -> None:
        """Send requests again that no device has answered yet, ever more rarely."""
        now_s = self._ledger.now().run_s
        for (job_id, device, number), (sent_s, wait_s) in list(self._sent_at_run_s.items()):
            if now_s < sent_s + wait_s:
                continue
            request = self._ledger.state.jobs[job_id].requests.get((device, number))
            if request is None or request.state is not RequestState.ISSUED:
                del self._sent_at_run_s[job_id, device, number]
            else:
                self._send_request(job_id, device, number, min(2 * wait_s, RESEND_CAP_S))

    async def run(self, bus: Bus) -> None:
        """Send what is queued, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number, lane in enumerate(self._lanes):
                tasks.create_task(self._send(bus, lane), name=f"send-{number}")
            tasks.create_task(self.downlink.run(bus), name="downlink")
            tasks.create_task(self._resend(), name="resend")

    async def _resend(self) -> None:
        while True:
            await self._unanswered.wait()
            await asyncio.sleep(RESEND_FIRST_S / 2)
            self.resend_due()
            if not self._sent_at_run_s:
                self._unanswered.clear()

    async def _send(self, bus: Bus, lane: asyncio.Queue[tuple[str, Event | bytes | SendModel]]) -> None:
        while True:
            device, what = await lane.get()
            topic = topics.down(self._identity.federation, DeviceId(device))
            try:
                if isinstance(what, bytes):
                    await bus.publish(topic, what)
                elif isinstance(what, SendModel):
                    await self._send_event(bus, topic, device, await self._model_offer(what))
                else:
                    await self._send_event(bus, topic, device, what)
            except BusUndelivered:
                self.dropped[device] += 1  # in doubt: the device asks again after it reconnects
            finally:
                self._queued[device] -= 1
                if not self._queued[device]:
                    del self._queued[device]

    async def _send_event(self, bus: Bus, topic: str, device_id: str, event: Event) -> None:
        device = self._ledger.state.devices.get(device_id)
        if device is None:
            return
        await self._ledger.journal.room()
        envelope = await self._room.here(self._mailbox.sign, self._mailbox.seal(device.box, event))
        self._ledger.sent(device_id, envelope.header_bytes, encode_event(_without_secrets(event)))
        await bus.publish(topic, envelope.to_bytes())


def _seed(job: Job, request: Request) -> int:
    """The order of a device's batches: fixed by the job's seed, and another for each of its trainings."""
    number = request.round if job.spec.asynchronous is None else request.number
    text = f"{job.spec.seed}:{job.id}:{request.device}:{number}".encode()
    return int.from_bytes(blake2b(text, digest_size=4, person=b"fb1.local-seed").digest(), "little")


def _without_secrets(event: Event) -> Event:
    if not isinstance(event, TrainingRequest | ModelOffer):
        return event
    return replace_field(event, job_key=bytes(32))
