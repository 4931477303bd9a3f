"""Updates that come in chunks: offers, grants, chunks into spools, and the whole made durable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from broker.bodies import Bodies
from broker.ports import Ports
from broker.transfer import Credits, Spool
from coordinator.dispatch import Dispatch
from coordinator.fold import read_envelope, stored, stored_name
from coordinator.ledger import Ledger
from coordinator.state import OPEN_REQUEST
from coordinator.store import Store
from schemas.chunks import Chunk, bitmap
from schemas.envelope import Envelope, chunk_digests
from schemas.errors import LayoutMismatch, Orphan, WireError
from schemas.events import Bitmap, Grant
from schemas.limits import CHUNK_OVERHEAD_BYTES, RESEND_CAP_S, RESEND_FIRST_S

SMALL_CHUNK_BYTES = 64 * 1024  # takes less time to hash and write than to hand to a thread
SPOOLS_MAX = 256  # transfers that have begun and are not complete: each is an open file
DEVICE_SPOOLS_MAX = 8  # of one device, so that none can take the others' place
IDLE_S = 15 * RESEND_CAP_S  # on the slowest of links, a chunk may take minutes

Key = tuple[str, bytes]  # device, transfer


@dataclass(slots=True)
class Upload:
    """A transfer that has begun."""

    device: str
    envelope: Envelope
    spool: Spool
    heard_s: float

    @property
    def recipient(self) -> bytes:
        """Id of the request's key."""
        return self.envelope.clear.recipient


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
        self._bodies = bodies
        self._ports = ports
        self._folder = folder
        self._completed = completed
        self._uploads: dict[Key, Upload] = {}
        self._busy: set[Key] = set()  # being opened, closed or made durable
        self._resting: dict[bytes, Path] = {}  # request's key → spool of a device that fell silent
        self.credits = Credits()

    def offer(self, device: str, job: str, received: Envelope) -> Awaitable[None] | None:
        """A device has an update for us: say what we hold of it, and grant what there is room for.

        What is returned is to be awaited; None when there is nothing to do now.
        Raises `LayoutMismatch` when it cannot be an update of this job.
        """
        clear = received.clear
        expected = 4 * self._store.layout(job).trained_count
        if clear.content_bytes != expected:
            raise LayoutMismatch(f"an update of {clear.content_bytes} bytes where the layout has {expected}")
        key = device, received.transfer
        if key in self._busy:
            return None
        if key in self._uploads:
            self._uploads[key].heard_s = self._ports.clock.monotonic_s()
            return self._answer(key)
        begun = [*self._uploads, *self._busy]
        if len(begun) >= SPOOLS_MAX or sum(owner == device for owner, _ in begun) >= DEVICE_SPOOLS_MAX:
            return None  # the device offers again, later
        self._busy.add(key)
        if self._resting.get(clear.recipient) == self._path(received):
            del self._resting[clear.recipient]
        return self._begin(key, received)

    async def _begin(self, key: Key, received: Envelope) -> None:
        # What an earlier life of this coordinator spooled is hashed again: the file is the truth.
        self._uploads[key] = await self._ports.offload.run(self._open, key[0], received)
        self._busy.discard(key)
        await self._answer(key)

    async def _answer(self, key: Key) -> None:
        upload = self._uploads.get(key)
        if upload is None:
            return  # its last chunk came meanwhile
        device, transfer = key
        spool, now_s = upload.spool, self._ports.clock.monotonic_s()
        self._dispatch.tell(device, Bitmap(transfer=transfer, have=bitmap(spool.have)))
        if spool.complete:
            await self._finish(key)
        else:
            # By the first envelope, as the spool is: a later one may cut the same body otherwise.
            sealed_bytes = upload.envelope.clear.chunk_bytes + CHUNK_OVERHEAD_BYTES
            self.credits.offer(device, transfer, spool.missing(), sealed_bytes, now_s)
            self._grant()

    def _open(self, device: str, received: Envelope) -> Upload:
        self._ports.files.make_dir(self._folder)
        path = self._path(received)
        if self._ports.files.exists(path):
            received = self._earlier(path) or received
        spool = Spool(
            self._ports.files,
            path,
            digests=chunk_digests(received),
            content_bytes=received.clear.content_bytes,
            chunk_bytes=received.clear.chunk_bytes,
            preamble=stored(received),
        )
        spool.open()
        return Upload(device, received, spool, self._ports.clock.monotonic_s())

    def _path(self, received: Envelope) -> Path:
        return self._folder / f"{stored_name(received.clear.recipient, received.digest)}.part"

    def _earlier(self, path: Path) -> Envelope | None:
        """The envelope that a spool was begun with: the same body, signed under an earlier number. None if a
        crash left no whole one; the spool then starts anew."""
        file = self._ports.files.open(path)
        try:
            earlier = read_envelope(file)[0]
        except WireError:
            self._ports.files.remove(path)
            return None
        finally:
            file.close()
        return earlier

    async def chunk(self, device: str, chunk: Chunk) -> Awaitable[None] | None:
        """Spool one chunk; done when it is written. With the last one, what is returned is to be awaited:
        it makes the whole durable. Raises `Orphan` for a chunk of no transfer."""
        key = device, chunk.transfer
        upload = self._uploads.get(key)
        if upload is None:
            if key in self._busy:
                return None  # a second copy of the last chunk
            raise Orphan("a chunk of no transfer that was offered, or of one that is complete")
        upload.heard_s = self._ports.clock.monotonic_s()
        if len(chunk.sealed) <= SMALL_CHUNK_BYTES:
            upload.spool.accept(chunk.index, chunk.sealed)
        else:
            await self._ports.offload.run(upload.spool.accept, chunk.index, chunk.sealed)
        self.credits.arrived(device, chunk.transfer, chunk.index, self._ports.clock.monotonic_s())
        self._grant()
        # An offer that came again meanwhile may have seen the last chunk first.
        return self._finish(key) if upload.spool.complete and key in self._uploads else None

    def _finish(self, key: Key) -> Awaitable[None]:
        self._busy.add(key)
        return self._keep(key, self._uploads.pop(key))

    async def _keep(self, key: Key, upload: Upload) -> None:
        envelope = upload.envelope
        name = stored_name(envelope.clear.recipient, envelope.digest)
        resting = self._resting.pop(upload.recipient, None)
        await self._ports.offload.run(self._adopt, name, upload.spool, resting)
        await self._completed(upload.device, envelope)
        self._busy.discard(key)

    def _adopt(self, name: str, spool: Spool, resting: Path | None) -> None:
        spool.finish()
        self._bodies.adopt(name, spool.path)
        self._bodies.sync()
        if resting is not None:
            self._ports.files.remove(resting)

    def _grant(self) -> None:
        for granted in self.credits.grant(self._ports.clock.monotonic_s()):
            self._dispatch.tell(granted.owner, Grant(transfer=granted.transfer, chunks=list(granted.chunks)))

    async def run(self) -> None:
        """Take back grants that nothing came of, and let go of what no device goes on with."""
        while True:
            await asyncio.sleep(RESEND_FIRST_S)
            for key in list(self._uploads):
                upload = self._uploads.get(key)  # resting one takes a while: this one may be complete by now
                if upload and self._ports.clock.monotonic_s() - upload.heard_s > IDLE_S:
                    await self._rest(key)
            for recipient in [recipient for recipient in self._resting if not self._wanted(recipient)]:
                self._ports.files.remove(self._resting.pop(recipient))
            self.credits.expire(self._ports.clock.monotonic_s())
            self._grant()

    async def _rest(self, key: Key) -> None:
        """The device fell silent. One spool of a request is kept for it to go on with, the newest."""
        self._busy.add(key)
        upload = self._uploads.pop(key)
        self.credits.drop(*key)
        before = self._resting.pop(upload.recipient, None)
        self._resting[upload.recipient] = upload.spool.path
        await self._ports.offload.run(upload.spool.close)
        if before is not None:
            self._ports.files.remove(before)
        self._busy.discard(key)

    def _wanted(self, recipient: bytes) -> bool:
        """Whether the update to a request's key is still to come."""
        known = self._ledger.state.by_update_key.get(recipient)
        request = self._ledger.state.jobs[known[0]].requests.get((known[1], known[2])) if known else None
        return request is not None and request.state in OPEN_REQUEST

    def sweep(self) -> None:
        """At start: remove spools that nobody waits for; of one request's, one is kept."""
        files = self._ports.files
        for name in files.names(self._folder):
            path = self._folder / name
            file = files.open(path)
            try:
                recipient = read_envelope(file)[0].clear.recipient
            except WireError:
                recipient = b""
            finally:
                file.close()
            if recipient not in self._resting and self._wanted(recipient):
                self._resting[recipient] = path
            else:
                files.remove(path)
