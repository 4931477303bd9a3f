"""One device of a recording, played at a broker: it says what it is told to, and hears what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

from msgspec.structs import replace

from broker.bus import Bus, BusUndelivered, Connected
from broker.mailbox import Mailbox, Sequencer
from broker.ports import Ports
from coordinator.onto.source import Throwaway
from coordinator.onto.waiting import PATIENCE_S, Say, Waiting
from coordinator.rekey.updates import Found
from schemas import topics
from schemas.chunks import pack_chunk
from schemas.envelope import MAGIC, Sealed, content_key, new_clear, open_envelope, parse, seal
from schemas.errors import WireError
from schemas.events import (
    DeviceStatus,
    Event,
    Grant,
    ModelOffer,
    ModelRequest,
    OfferRead,
    Receipt,
    RequestRef,
    Stale,
    StateReply,
    StateRequest,
    TrainingRequest,
    Verdict,
    decode_from_coordinator,
    encode_event,
)
from schemas.ids import DeviceId
from schemas.models import Manifest, open_layout, open_manifest
from schemas.sealing import aead_seal

REQUESTS_TOLD: Final = 64
REMEDY: Final = (
    "does a coordinator serve there that was staged from this recording (`fedbus-coordinator journal stage`) "
    "and was played nothing yet?"
)
T = TypeVar("T")


class Offer:
    """An update for a request of the staging coordinator: what was recorded, sealed to the new key. It names
    this request and its base where it named the recorded ones, ``was``."""

    def __init__(
        self,
        ports: Ports,
        own: Throwaway,
        request: TrainingRequest,
        found: Found | None,
        was: Mapping[str, object],
    ) -> None:
        self.key = request.job, request.request
        self._found = found
        key = ports.entropy.random_bytes(32)
        in_chunks = found is not None and found.clear.chunks > 0
        size = (found.clear.content_bytes, found.clear.chunk_bytes) if found and in_chunks else (0, 0)
        self.clear = new_clear(own.federation, own.signing.public, request.update_key, *size)
        self._encryption, self._context = content_key(key, self.clear)
        digests = tuple(sha256(self.chunk(index)).digest() for index in range(self.clear.chunks))
        inner = b""  # what nothing opened: the coordinator rejected it, and does so again
        if found is not None:
            right = [name for name, value in was.items() if getattr(found.update, name) == value]
            inner = encode_event(replace(found.update, **{name: getattr(request, name) for name in right}))
        self.sealed: Sealed = seal(self.clear, key, request.update_key, inner, digests)
        self.counts = False
        """Whether grants do: they follow an offer that was read."""
        self.receipted_s = 0.0

    def chunk(self, index: int) -> bytes:
        """Sealed chunk ``index``: the same bytes each time."""
        plain = self._found.chunk(index) if self._found else b""
        return aead_seal(self._encryption, index, self.clear.chunks, plain, self._context)


class Played:
    """A device in a job, at the broker that ``bus``, which is not entered yet, leads to.

    ``requests``, ``receipts`` and ``verdicts`` of the job are those that it heard, by the request's number.
    """

    def __init__(self, ports: Ports, own: Throwaway, job: str, bus: Bus, sequence: Path) -> None:
        self.own = own
        self._job = job
        self.requests: dict[int, TrainingRequest] = {}
        self.receipts: dict[int, Receipt] = {}
        self.verdicts: dict[int, Verdict] = {}
        self._newest: ModelOffer | None = None
        self._replies = 0
        self._offer: Offer | None = None
        self._unjudged: dict[int, Sealed] = {}
        """Until their verdicts came."""
        self._ports, self._bus = ports, bus
        self._signer, self._box = own.keys.signing, own.keys.box
        self._reader = own.box
        self._mailbox = Mailbox(
            bus, own.federation, own.signing, Sequencer(ports.files, sequence), ports.entropy
        )
        self._up = topics.up(own.federation, DeviceId(own.device))
        self._waiting = Waiting(bus, own.device, REMEDY)

    @asynccontextmanager
    async def connected(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """At the broker, until the context ends. Raises `broker.bus.BusRefused`, through ``tasks``."""
        async with self._bus:
            listening = tasks.create_task(self._listen(), name=f"listen {self.own.device}")
            try:
                yield
            finally:
                listening.cancel()
                await asyncio.wait([listening])

    async def _listen(self) -> None:
        async for item in self._bus.incoming():
            if isinstance(item, Connected):
                continue
            if item.payload.startswith(MAGIC):
                with suppress(WireError):  # of another life of the coordinator, perhaps
                    await self._hear(item.payload)
            await item.ack()

    async def _hear(self, payload: bytes) -> None:
        envelope = parse(payload)
        envelope.check_signature(self._signer)
        opened = open_envelope(envelope, self._reader, self.own.federation)
        event = decode_from_coordinator(opened.inner)
        if getattr(event, "job", self._job) != self._job:
            return
        match event:
            case TrainingRequest() as request:
                self.requests[request.request] = request
            case Receipt() as receipt:
                self._receipted(receipt)
            case Verdict() as verdict:
                self.verdicts[verdict.request] = verdict
            case OfferRead() as read:
                if self._offer and read.transfer == self._transfer():
                    self._offer.counts = True
            case Grant() as grant:
                await self._granted(grant)
            case StateReply():
                self._replies += 1
            case ModelOffer() as newest:
                self._newest = newest
            case Stale() as stale:
                self._mailbox.sequencer.skip_beyond(stale.high)
            case _:
                return
        self._waiting.wake()

    def _receipted(self, receipt: Receipt) -> None:
        if self._offer and not self._offer.receipted_s and (receipt.job, receipt.request) == self._offer.key:
            self._offer.receipted_s = self._ports.clock.monotonic_s()
        self.receipts[receipt.request] = receipt

    def _transfer(self) -> bytes:
        return self._offer.sealed.seal.body[:16] if self._offer else b""

    async def _granted(self, grant: Grant) -> None:
        offer = self._offer
        if offer is None or grant.transfer != self._transfer() or not offer.counts:
            return
        for index in grant.chunks:
            if index < offer.clear.chunks:
                with suppress(BusUndelivered):
                    await self._bus.publish(self._up, pack_chunk(grant.transfer, index, offer.chunk(index)))

    async def say(self, event: Event) -> None:
        """Send it; whoever waits for an answer sends it again. Raises `Silence` if no broker takes it."""
        await self._waiting.said(lambda: self._send(event))

    async def _send(self, event: Event) -> None:
        await self._mailbox.send(self._up, self._box, event)

    async def heard(
        self, look: Callable[[], T | None], what: str, say: Say | None = None, patience_s: float = PATIENCE_S
    ) -> T:
        """As `Waiting.heard`; without ``say``, the coordinator is asked how things stand."""
        return await self._waiting.heard(look, what, say or self.ask, patience_s)

    async def ask(self) -> None:
        """How things stand: what was not heard is said again. Raises `broker.bus.BusUndelivered`."""
        await self._send(self._state())

    def _state(self) -> StateRequest:
        held = [RequestRef(one.job, one.request) for one in self.requests.values()]
        return StateRequest(requests=held[-REQUESTS_TOLD:], key_set=self.own.keys.number)

    async def report(self, status: DeviceStatus) -> None:
        """Say what it can do; the coordinator has taken that on return. Raises `Silence`."""
        replies = self._replies

        async def say() -> None:
            await self._send(status)
            await self._send(self._state())

        await self._waiting.said(say)
        await self.heard(lambda: self._replies > replies or None, "answer to what it can do", say)

    async def offer(self, offer: Offer) -> float:
        """Send an update until it is receipted; how long that took, in seconds. Raises `Silence`."""
        self._offer = offer
        number, began_s = offer.key[1], self._ports.clock.monotonic_s()

        async def say() -> None:
            offer.counts = False
            await self._bus.publish(self._up, self._mailbox.sign(offer.sealed).to_bytes())

        await self._waiting.said(say)
        await self.heard(lambda: self.receipts.get(number), "receipt", say)
        self._offer, self._unjudged[number] = None, offer.sealed
        return offer.receipted_s - began_s

    async def verdict(self, number: int, what: str) -> Verdict:
        """The verdict on a receipted update; ``what`` is for people. Raises `Silence`."""
        sealed = self._unjudged[number]

        async def again() -> None:  # is answered with receipt and verdict
            await self._bus.publish(self._up, self._mailbox.sign(sealed).to_bytes())

        verdict = await self.heard(lambda: self.verdicts.get(number), what, again)
        del self._unjudged[number]
        return verdict

    async def newest(self) -> Manifest:
        """Which version of the job is the newest now. Raises `Silence`."""
        self._newest = None
        ask = ModelRequest(job=self._job)
        await self.say(ask)
        told = await self.heard(lambda: self._newest, "newest version", lambda: self._send(ask))
        layout = open_layout(told.layout, self._signer, self._job)
        return open_manifest(told.manifest, self._signer, self.own.federation, self._job, layout)
