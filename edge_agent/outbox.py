"""Sealed updates on their way: offered until the coordinator's receipt, whatever is killed in between.

``outbox/<job>.<request>.<attempt>/`` holds what the worker wrote (``body`` and perhaps ``chunks``, synced);
the folder counts once the file ``sealed`` stands in it. What is sent again is the same ciphertext.

A chunk is sent when it is granted, and a second time only if the first was lost: grants count once the
coordinator has read an offer that was made behind all chunks sent so far; from then on each chunk goes once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from broker.bus import BusUndelivered
from broker.mailbox import Mailbox
from broker.ports import File, Ports, write_atomic
from edge_agent.ledger import RequestKey
from edge_agent.private import RESIDUALS, Drawer
from schemas import work
from schemas.chunks import pack_chunk
from schemas.codec import pack, unpack
from schemas.envelope import Clear, Seal, Sealed
from schemas.errors import Malformed
from schemas.ids import transfer_id
from schemas.limits import CHUNK_OVERHEAD_BYTES, RESEND_CAP_S, RESEND_FIRST_S

log: Final = logging.getLogger("fedbus.outbox")

DIR: Final = "outbox"
SEALED_FILE: Final = "sealed"


class SealedUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """Whose update it is, and the parts of its header that the worker made."""

    job: str
    request: int
    clear: Clear
    seal: Seal


class Entry:
    """One update on its way."""

    def __init__(self, folder: Path, update: SealedUpdate) -> None:
        self.folder = folder
        self.update = update
        self.granted: list[int] = []
        self.sent: set[int] = set()
        """Chunks that were sent since an offer was read."""
        self.awaited: int | None = None
        """Number of the first offer since the last chunk was sent; None before the first of this life."""
        self.read = False
        self.offer_now = True
        self.heard_s = 0.0
        """When it was offered, or something granted, last."""
        self.changed = asyncio.Event()

    @property
    def key(self) -> RequestKey:
        return self.update.job, self.update.request

    @property
    def digest(self) -> bytes:
        return self.update.seal.body

    @property
    def transfer(self) -> bytes:
        return transfer_id(self.update.seal.body)

    def offer(self, seq: int) -> None:
        """It is being offered under this number: what was granted before counts no more."""
        if self.read or self.awaited is None:
            self.awaited, self.read = seq, False
        self.granted.clear()

    def was_read(self, seq: int) -> None:
        """The coordinator read this offer, and all that was sent before it."""
        if self.awaited is not None and seq >= self.awaited and not self.read:
            self.read = True
            self.sent.clear()

    def grant(self, chunks: Collection[int]) -> None:
        """These may be sent, unless they are meant for an older offer."""
        if self.read:
            count, known = self.update.clear.chunks, {*self.granted, *self.sent}
            self.granted += [index for index in chunks if index < count and index not in known]

    def next_chunk(self) -> int:
        """The next granted chunk; it counts as sent from now on, for a sender may not learn that it was."""
        index = self.granted.pop(0)
        self.sent.add(index)
        return index

    def fields(self) -> dict[str, object]:
        """For the log."""
        return {"job": self.update.job, "request": self.update.request}


class Outbox:
    """All updates that have no receipt. `run` sends them; the other methods answer the coordinator."""

    def __init__(self, ports: Ports, directory: Path, mailbox: Mailbox, topic: str) -> None:
        self._files = ports.files
        self._clock = ports.clock
        self._entropy = ports.entropy
        self._folder = directory / DIR
        self.residuals = Drawer(ports.files, directory, RESIDUALS)
        self._mailbox = mailbox
        self._topic = topic
        self._drawer = Drawer(ports.files, directory)
        self._entries: dict[RequestKey, Entry] = {}
        self._started: asyncio.TaskGroup | None = None

    def restore(self, wanted: Collection[RequestKey]) -> list[RequestKey]:
        """Take up what an earlier life left: ``wanted`` updates that are whole. The rest is removed."""
        for name in self._files.names(self._folder):
            folder = self._folder / name
            update = self._read(folder)
            if update is None or (update.job, update.request) not in wanted:
                self._files.remove(folder)
            elif (update.job, update.request) not in self._entries:
                self._drawer.adopt(update.job, folder)
                self.residuals.adopt(update.job, folder)
                self._entries[update.job, update.request] = Entry(folder, update)
        return list(self._entries)

    def new_folder(self, key: RequestKey) -> Path:
        """An empty folder for the worker to write to.

        Named anew each time: a worker of an earlier life that still writes can't meddle.
        """
        attempt = self._entropy.random_bytes(4).hex()
        folder = self._folder / f"{key[0]}.{key[1]}.{attempt}"
        self._files.make_dir(folder)
        return folder

    def discard(self, folder: Path) -> None:
        """Remove a folder that no update came of."""
        self._files.remove(folder)

    def add(self, key: RequestKey, folder: Path, trained: work.Trained) -> None:
        """The update in ``folder`` is made: durable on return, and offered from now on."""
        update = SealedUpdate(job=key[0], request=key[1], clear=trained.clear, seal=trained.seal)
        write_atomic(self._files, folder / SEALED_FILE, pack(update))
        self._drawer.adopt(key[0], folder)
        self.residuals.adopt(key[0], folder)
        entry = self._entries[key] = Entry(folder, update)
        self._start(entry)

    async def run(self) -> None:
        """Offer everything, until cancelled. Raises `broker.bus.BusRefused`."""
        async with asyncio.TaskGroup() as group:
            self._started = group
            for entry in self._entries.values():
                self._start(entry)
            await asyncio.Event().wait()

    def offer(self, key: RequestKey) -> None:
        """Offer an update now instead of later."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.offer_now = True
            entry.changed.set()

    def again(self) -> None:
        """A new connection stands. Chunks may have been lost with the old one: offer what was being sent.

        An offer that waits for its answer is left to the broker, for a while.
        """
        for entry in self._entries.values():
            entry.offer_now = entry.offer_now or entry.read
            entry.changed.set()

    def grant(self, transfer: bytes, chunks: Collection[int]) -> None:
        """Chunks may be sent. Those of an unknown transfer are none of ours any more."""
        entry = self.by_transfer(transfer)
        if entry is not None:
            entry.grant(chunks)
            entry.heard_s = self._clock.monotonic_s()
            entry.changed.set()

    def was_read(self, transfer: bytes, seq: int) -> None:
        """The coordinator read an offer: the grants that follow it count."""
        entry = self.by_transfer(transfer)
        if entry is not None:
            entry.was_read(seq)

    def by_transfer(self, transfer: bytes) -> Entry | None:
        """The update whose body this names."""
        return next((entry for entry in self._entries.values() if entry.transfer == transfer), None)

    def find(self, key: RequestKey) -> Entry | None:
        return self._entries.get(key)

    def remove(self, key: RequestKey) -> None:
        """Forget an update. The caller has made durable why."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.changed.set()
            self._files.remove(entry.folder)

    def _start(self, entry: Entry) -> None:
        if self._started is not None:
            self._started.create_task(self._deliver(entry), name=f"update {entry.key[0]}.{entry.key[1]}")

    async def _deliver(self, entry: Entry) -> None:
        delay_s = RESEND_FIRST_S
        while self._holds(entry):
            entry.changed.clear()
            try:
                await self._offer_if_due(entry)
                while entry.granted and self._holds(entry):
                    await self._send_chunk(entry, entry.next_chunk())
                    delay_s = RESEND_FIRST_S
                    if self._clock.monotonic_s() - entry.heard_s >= RESEND_CAP_S:
                        # On a slow link; the coordinator may have put the upload aside and needs a new offer.
                        entry.offer_now = True
                    await self._offer_if_due(entry)
            except BusUndelivered:
                entry.offer_now = True
            except FileNotFoundError:
                if self._holds(entry):
                    raise
                return  # receipted while it was being sent
            try:
                async with asyncio.timeout(delay_s):
                    await entry.changed.wait()
            except TimeoutError:
                entry.offer_now = True
                delay_s = min(2 * delay_s, RESEND_CAP_S)

    def _holds(self, entry: Entry) -> bool:
        return self._entries.get(entry.key) is entry

    async def _offer_if_due(self, entry: Entry) -> None:
        if entry.offer_now and self._holds(entry):
            entry.offer_now = False
            entry.heard_s = self._clock.monotonic_s()
            await self._offer(entry)

    async def _offer(self, entry: Entry) -> None:
        body = self._files.read(entry.folder / work.BODY_FILE)
        sealed = Sealed(entry.update.clear, entry.update.seal, body)
        envelope = self._mailbox.sign(sealed)
        entry.offer(envelope.order.seq)
        log.debug("offered", extra=entry.fields())
        await self._mailbox.bus.publish(self._topic, envelope.to_bytes())

    async def _send_chunk(self, entry: Entry, index: int) -> None:
        clear = entry.update.clear
        file: File = self._files.open(entry.folder / work.CHUNKS_FILE)
        try:
            at = index * (clear.chunk_bytes + CHUNK_OVERHEAD_BYTES)
            sealed = file.read_at(at, clear.chunk_size(index) + CHUNK_OVERHEAD_BYTES)
        finally:
            file.close()
        await self._mailbox.bus.publish(self._topic, pack_chunk(entry.transfer, index, sealed))

    def _read(self, folder: Path) -> SealedUpdate | None:
        try:
            update = unpack(self._files.read(folder / SEALED_FILE), SealedUpdate)
        except (OSError, Malformed):
            return None
        return update if self._files.exists(folder / work.BODY_FILE) else None
