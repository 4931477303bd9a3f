"""Updates that come in chunks: offers, grants, chunks into spools, and the whole made durable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from broker.bodies import Bodies
from broker.ports import Ports
from broker.transfer import Credits, Spool
from coordinator.dispatch import Dispatch
from coordinator.ledger import Ledger
from coordinator.negotiation import update_sizes
from coordinator.spools import Begun, Spools
from coordinator.state import OPEN_REQUEST, Request
from coordinator.store import Store
from schemas.chunks import Chunk, bitmap
from schemas.envelope import Envelope, Order
from schemas.errors import LayoutMismatch, Orphan
from schemas.events import Bitmap, Grant, OfferRead
from schemas.limits import CHUNK_OVERHEAD_BYTES, RESEND_CAP_S, RESEND_FIRST_S

log = structlog.get_logger()

SMALL_CHUNK_BYTES = 64 * 1024  # takes less time to hash and write than to hand to a thread
SPOOLS_MAX = 256  # transfers that have begun and are not complete: each is an open file
DEVICE_SPOOLS_MAX = 8  # of one device, so that none can take the others' place
IDLE_S = 15 * RESEND_CAP_S  # on the slowest of links, a chunk may take minutes

Key = tuple[str, bytes]  # device, transfer


@dataclass(slots=True)
class Upload:
    """A transfer that has begun. ``order`` is that of the newest offer of it."""

    device: str
    begun: Begun
    heard_s: float
    order: Order

    @property
    def envelope(self) -> Envelope:
        return self.begun.envelope

    @property
    def spool(self) -> Spool:
        return self.begun.spool

    @property
    def recipient(self) -> bytes:
        """Id of the request's key."""
        return self.envelope.clear.recipient


@dataclass(frozen=True, slots=True)
class Resting:
    """The spool of a transfer that fell silent, or that an earlier life of this coordinator began."""

    key: Key
    path: Path
    since_s: float


class Uploads:
    """Receives chunked updates. Spools survive a restart; credit does not, and is asked for again."""

    def __init__(
        self,
        ledger: Ledger,
        dispatch: Dispatch,
        store: Store,
        bodies: Bodies,
        ports: Ports,
        folder: Path,
        completed: Callable[[str, Envelope], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._dispatch = dispatch
        self._store = store
        self._spools = Spools(ports.files, folder, bodies)
        self._ports = ports
        self._completed = completed
        self._uploads: dict[Key, Upload] = {}
        self._opening: dict[Key, asyncio.Event] = {}
        self._busy: set[Key] = set()  # being closed or made durable
        self._resting: dict[bytes, Resting] = {}  # by the request's key: one of each
        self._begun = asyncio.Event()  # there is something that `run` may have to let go of
        self._stood_s = 0.0
        self.credits = Credits()
        self.put_off = 0
        """Offers that were not answered for want of room, so far."""

    @property
    def open(self) -> int:
        """Transfers that have begun and are not complete."""
        return len(self._uploads)

    def _now_s(self) -> float:
        """Time, as far as messages were read: what lies at the broker unread is nobody's silence."""
        return self._ports.clock.monotonic_s() - self._stood_s

    def offer(self, device: str, job: str, received: Envelope) -> Awaitable[None] | None:
        """A device has an update for us: say what we hold of it, and grant what there is room for.

        What is returned is to be awaited; None when there is nothing to do now.
        Raises `LayoutMismatch` when it cannot be an update of this job.
        """
        clear = received.clear
        sizes = update_sizes(self._ledger.state.jobs[job].spec, self._store.layout(job))
        if clear.content_bytes not in sizes:
            has = " or ".join(str(size) for size in sizes)
            raise LayoutMismatch(f"an update of {clear.content_bytes} bytes where the layout has {has}")
        key = device, received.transfer
        if key in self._busy or key in self._opening:
            return None
        upload = self._uploads.get(key)
        if upload is not None:
            if received.order <= upload.order:
                return None  # it came twice
            upload.heard_s, upload.order = self._now_s(), received.order
            return self._answer(key)
        if self._spools.kept(received):
            self._busy.add(key)
            return self._record(key, received)
        if not self._room(device):
            self.put_off += 1
            log.debug("an offer was put off", device=device, job=job, transfers=len(self._uploads))
            return None  # the device offers again, later
        if clear.recipient in self._resting and self._resting[clear.recipient].key == key:
            del self._resting[clear.recipient]
        self._opening[key] = asyncio.Event()
        return self._begin(key, self._spools.path(received), received)

    def _room(self, device: str) -> bool:
        begun = [*self._uploads, *self._opening, *self._busy]
        return len(begun) < SPOOLS_MAX and sum(owner == device for owner, _ in begun) < DEVICE_SPOOLS_MAX

    async def _begin(self, key: Key, path: Path, received: Envelope | None) -> None:
        begun = await self._ports.offload.run(self._spools.open, path, received)
        if begun is not None:
            order = (received or begun.envelope).order
            self._uploads[key] = Upload(key[0], begun, self._now_s(), order)
            self._begun.set()
        self._opening.pop(key).set()
        if received is not None:
            await self._answer(key)

    async def _answer(self, key: Key) -> None:
        upload = self._uploads.get(key)
        if upload is None:
            return  # its last chunk came meanwhile
        device, transfer = key
        spool, now_s = upload.spool, self._now_s()
        self._dispatch.tell(device, OfferRead(transfer=transfer, seq=upload.order.seq))
        self._dispatch.tell(device, Bitmap(transfer=transfer, have=bitmap(spool.have)))
        if spool.complete:
            await self._finish(key)
        else:
            # By the first envelope, as the spool is: a later one may cut the same body otherwise.
            sealed_bytes = upload.envelope.clear.chunk_bytes + CHUNK_OVERHEAD_BYTES
            self.credits.offer(device, transfer, spool.missing(), sealed_bytes, now_s)
            self._grant()

    async def chunk(self, device: str, chunk: Chunk) -> Awaitable[None] | None:
        """Spool one chunk; done when it is written. With the last one, what is returned is to be awaited:
        it makes the whole durable. Raises `Orphan` for a chunk of no transfer."""
        key = device, chunk.transfer
        await self._opened(key)
        upload = self._uploads.get(key)
        if upload is None:
            if key in self._busy:
                return None  # a second copy of the last chunk
            raise Orphan("a chunk of no transfer that was offered, or of one that is complete")
        upload.heard_s = self._now_s()
        await self._accept(upload.spool, chunk)
        self.credits.arrived(device, chunk.transfer, chunk.index, self._now_s())
        self._grant()
        # An offer that came again meanwhile may have seen the last chunk first.
        return self._finish(key) if upload.spool.complete and key in self._uploads else None

    async def _accept(self, spool: Spool, chunk: Chunk) -> None:
        if len(chunk.sealed) <= SMALL_CHUNK_BYTES:
            with suppress(OSError):  # a full disk is waited for below, any other failure comes again there
                spool.accept(chunk.index, chunk.sealed)
                return
        await self._ports.offload.run(spool.accept, chunk.index, chunk.sealed)

    async def _opened(self, key: Key) -> None:
        """A chunk of a transfer came: wait until its spool is open, open it if it rests."""
        if key in self._opening:
            await self._opening[key].wait()
        elif key not in self._uploads and key not in self._busy:
            resting = next((resting for resting in self._resting.values() if resting.key == key), None)
            if resting is not None and self._room(key[0]):
                self._resting = {of: found for of, found in self._resting.items() if found is not resting}
                self._opening[key] = asyncio.Event()
                await self._begin(key, resting.path, None)

    def _finish(self, key: Key) -> Awaitable[None]:
        self._busy.add(key)
        return self._keep(key, self._uploads.pop(key))

    async def _keep(self, key: Key, upload: Upload) -> None:
        await self._ports.offload.run(self._spools.keep, upload.begun)
        resting = self._resting.pop(upload.recipient, None)
        if resting is not None:
            self._spools.remove(resting.path)
        await self._completed(upload.device, upload.envelope)
        self._busy.discard(key)

    async def _record(self, key: Key, received: Envelope) -> None:
        """All of it is durable: an earlier life of this coordinator ended before that was recorded."""
        envelope = await self._ports.offload.run(self._spools.kept_envelope, received)
        await self._completed(key[0], envelope)
        self._busy.discard(key)

    def _grant(self) -> None:
        for granted in self.credits.grant(self._now_s()):
            self._dispatch.tell(granted.owner, Grant(transfer=granted.transfer, chunks=list(granted.chunks)))

    async def run(self, reads: Callable[[], bool]) -> None:
        """Take back grants that nothing came of, and let go of what no device goes on with; neither of them
        while messages are not read."""
        while True:
            await self._begun.wait()
            since_s = self._ports.clock.monotonic_s()
            await asyncio.sleep(RESEND_FIRST_S)
            if not reads():
                self._stood_s += self._ports.clock.monotonic_s() - since_s
                continue
            for key in list(self._uploads):
                upload = self._uploads.get(key)  # resting one takes a while: this one may be complete by now
                if upload and self._now_s() - upload.heard_s > IDLE_S:
                    await self._rest(key)
            now_s = self._now_s()
            for recipient, resting in list(self._resting.items()):
                request = self._request(recipient)
                wanted = request is not None and request.state in OPEN_REQUEST
                if not wanted and now_s - resting.since_s > IDLE_S:
                    self._spools.remove(self._resting.pop(recipient).path)
            self.credits.expire(now_s)
            self._grant()
            if not (self._uploads or self._resting or self.credits.lines):
                self._begun.clear()

    async def _rest(self, key: Key) -> None:
        """The device fell silent. One spool of a request is kept for it to go on with, the newest."""
        self._busy.add(key)
        upload = self._uploads.pop(key)
        self.credits.drop(*key)
        before = self._resting.pop(upload.recipient, None)
        self._resting[upload.recipient] = Resting(key, upload.spool.path, upload.heard_s)
        await self._ports.offload.run(upload.spool.close)
        if before is not None:
            self._spools.remove(before.path)
        self._busy.discard(key)

    def _request(self, recipient: bytes) -> Request | None:
        """The request with this key."""
        known = self._ledger.state.by_update_key.get(recipient)
        return self._ledger.state.jobs[known[0]].requests.get((known[1], known[2])) if known else None

    def sweep(self) -> None:
        """At start: keep a spool for each request whose update has not come, and remove the rest."""
        for path, envelope in self._spools.left():
            recipient = envelope.clear.recipient
            request = self._request(recipient)
            if request is None or request.digest or recipient in self._resting:
                self._spools.remove(path)
            else:
                key = request.device, envelope.transfer
                self._resting[recipient] = Resting(key, path, self._now_s())
                self._begun.set()
