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
from coordinator.state import ENDED_JOB, RequestState
from coordinator.store import Store
from schemas.chunks import Chunk, bitmap
from schemas.envelope import Envelope, chunk_digests
from schemas.errors import LayoutMismatch, Orphan, WireError
from schemas.events import Bitmap, Grant
from schemas.limits import CHUNK_OVERHEAD_BYTES, RESEND_FIRST_S

SPOOLS_MAX = 1_024  # transfers that have begun and are not complete; bounds open files


Key = tuple[str, bytes]  # device, transfer


@dataclass(slots=True)
class Upload:
    """A transfer that has begun."""

    device: str
    envelope: Envelope
    spool: Spool


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
        self._busy: set[Key] = set()  # being opened or made durable
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
        full = len(self._uploads) + len(self._busy) >= SPOOLS_MAX
        key = device, received.transfer
        if key in self._busy or (full and key not in self._uploads):
            return None  # the device offers again, later
        return self._begin(device, received)

    async def _begin(self, device: str, received: Envelope) -> None:
        clear = received.clear
        key = device, received.transfer
        upload = self._uploads.get(key)
        if upload is None:
            self._busy.add(key)
            # What an earlier life of this coordinator spooled is hashed again: the file is the truth.
            upload = await self._ports.offload.run(self._open, device, received)
            self._uploads[key] = upload
            self._busy.discard(key)
        spool, now_s = upload.spool, self._ports.clock.monotonic_s()
        self._dispatch.tell(device, Bitmap(transfer=received.transfer, have=bitmap(spool.have)))
        if spool.complete:
            await self._finish(key)
        else:
            sealed_bytes = clear.chunk_bytes + CHUNK_OVERHEAD_BYTES
            self.credits.offer(device, received.transfer, spool.missing(), sealed_bytes, now_s)
            self._grant()

    def _open(self, device: str, received: Envelope) -> Upload:
        self._ports.files.make_dir(self._folder)
        path = self._folder / f"{stored_name(received.clear.recipient, received.digest)}.part"
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
        return Upload(device, received, spool)

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
        await self._ports.offload.run(upload.spool.accept, chunk.index, chunk.sealed)
        self.credits.arrived(device, chunk.transfer, chunk.index, self._ports.clock.monotonic_s())
        self._grant()
        return self._finish(key) if upload.spool.complete else None

    def _finish(self, key: Key) -> Awaitable[None]:
        self._busy.add(key)
        return self._keep(key, self._uploads.pop(key))

    async def _keep(self, key: Key, upload: Upload) -> None:
        envelope = upload.envelope
        name = stored_name(envelope.clear.recipient, envelope.digest)
        await self._ports.offload.run(self._adopt, name, upload.spool)
        await self._completed(upload.device, envelope)
        self._busy.discard(key)

    def _adopt(self, name: str, spool: Spool) -> None:
        spool.finish()
        self._bodies.adopt(name, spool.path)
        self._bodies.sync()

    def _grant(self) -> None:
        for granted in self.credits.grant(self._ports.clock.monotonic_s()):
            self._dispatch.tell(granted.owner, Grant(transfer=granted.transfer, chunks=list(granted.chunks)))

    async def run(self) -> None:
        """Take back grants that nothing came of, and drop spools whose request is closed."""
        while True:
            await asyncio.sleep(RESEND_FIRST_S)
            self.credits.expire(self._ports.clock.monotonic_s())
            self._grant()

    def sweep(self) -> None:
        """At start: remove spools of updates that nobody waits for."""
        wanted = {
            request.key
            for job in self._ledger.state.jobs.values()
            if job.state not in ENDED_JOB and job.round
            for request in job.round.requests
            if request.state in (RequestState.ISSUED, RequestState.ACCEPTED)
        }
        if not wanted:
            self._ports.files.remove(self._folder)
