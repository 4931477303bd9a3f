"""Models on their way to devices: each pulls, and what the broker holds for all of them stays bounded.

A pull names the chunks that its device waits for, the next of all that it lacks. What was sent and is no
longer named has arrived: that is how credit comes back (broker.transfer.Credits). An empty pull says that the
model is whole. A pull that shows no progress says that what was sent is lost: it is sent again, one chunk at
first. A device that says nothing for a lease gets nothing more until it speaks; meanwhile the others get
fewer chunks at a time, since what it was sent may still lie at the broker.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from broker.bus import Bus, BusLost, BusUndelivered
from broker.ports import Offload
from broker.transfer import Credits
from coordinator.effects import SendChunks
from coordinator.ledger import Ledger
from coordinator.state import DeviceState
from coordinator.store import Offered, Store
from schemas import topics
from schemas.chunks import pack_chunk
from schemas.events import Refusal
from schemas.ids import DeviceId, FederationId
from schemas.limits import CHUNK_OVERHEAD_BYTES, RESEND_FIRST_S

SENDERS = 4  # chunks read and handed to the broker at the same time
DEVICES_MAX = 4_096  # with something on its way: silent ones must not keep the others from small models
DEVICE_PULLS_MAX = 4  # models that one device pulls at a time; an honest one pulls two
WINDOW_FIRST_CHUNKS = 1  # to a device that has shown no progress yet, so that one that vanished holds little

Due = tuple[str, bytes, int]  # device, transfer, chunk


class Downlink:
    """Sends devices the chunks that they pull. Nothing here is recorded: after a restart they pull again."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        offload: Offload,
        federation: FederationId,
        tell: Callable[[str, Refusal], None],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._offload = offload
        self._federation = federation
        self._tell = tell
        self._queue: asyncio.Queue[Due] = asyncio.Queue()  # bounded by the credit
        self._due: dict[Due, bool] = {}  # whether it is sent for the second time
        self._pulled = asyncio.Event()  # something is on its way, or was left
        self._left: Counter[str] = Counter()  # bytes sent to devices that fell silent
        self.credits = Credits(transfers_max=DEVICES_MAX)
        """Of what was sent, or is about to be, and has not shown up at its device."""

    def pull(self, pull: SendChunks) -> None:
        """A device waits for these chunks; those that it was sent and does not name any more are there."""
        device, transfer = pull.device, pull.transfer
        self.credits.left_bytes -= self._left.pop(device, 0)  # it is there again, and reads it
        offered = self._offered(device, transfer)
        if offered is None:
            text = "this model is not offered; ask for your state"
            self._tell(device, Refusal(code="closed", text=text, transfer=transfer))
            return
        wanted = {index for index in pull.chunks if index < len(offered.manifest.chunks)}
        line = self.credits.lines.get((device, transfer))
        now_s = self._now_s()
        stands_still = line is not None and line.granted and line.missing <= wanted
        if not wanted:
            self.credits.drop(device, transfer)
        elif line is None or (stands_still and now_s - line.heard_s >= RESEND_FIRST_S):
            self._make_room(device)
            sealed_bytes = offered.manifest.chunk_bytes + CHUNK_OVERHEAD_BYTES
            self.credits.offer(device, transfer, wanted, sealed_bytes, now_s, window=WINDOW_FIRST_CHUNKS)
            self._pulled.set()
        elif not stands_still:  # else it was sent before it could know of what was sent
            self.credits.follow(device, transfer, wanted, now_s)
        self._grant()

    def _offered(self, device: str, transfer: bytes) -> Offered | None:
        """The model, if this device may have it: it is active, and was asked to train the job once."""
        offered = self._store.by_transfer.get(transfer)
        if offered is None or self._ledger.state.devices[device].state is not DeviceState.ACTIVE:
            return None
        return offered if device in self._ledger.state.jobs[offered.manifest.job].newest else None

    def _make_room(self, device: str) -> None:
        lines = [key for key in self.credits.lines if key[0] == device]
        if len(lines) >= DEVICE_PULLS_MAX:
            self.credits.drop(*lines[0])

    def _grant(self) -> None:
        for grant in self.credits.grant(self._now_s()):
            for index in grant.chunks:
                self._put((grant.owner, grant.transfer, index))

    def _put(self, due: Due, *, again: bool = False) -> None:
        if due not in self._due:
            self._due[due] = again
            self._queue.put_nowait(due)

    async def run(self, bus: Bus) -> None:
        """Send what is pulled, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(SENDERS):
                tasks.create_task(self._send(bus), name=f"chunks-{number}")
            tasks.create_task(self._take_back(), name="lapsed pulls")

    async def _send(self, bus: Bus) -> None:
        while True:
            due = await self._queue.get()
            again = self._due.pop(due)
            device, transfer, index = due
            line = self.credits.lines.get((device, transfer))
            offered = self._offered(device, transfer)
            if line is None or index not in line.granted or offered is None:
                continue
            sealed = await self._offload.run(self._store.read_chunk, offered, index)
            topic = topics.down(self._federation, DeviceId(device))
            try:
                await bus.publish(topic, pack_chunk(transfer, index, sealed))
            except BusLost:  # most likely it did not arrive, and the device would wait long before it says so
                if not again:  # else it may be this chunk that breaks the connection
                    self._put(due, again=True)
            except BusUndelivered:  # its session is gone, or full; the device pulls again
                continue

    async def _take_back(self) -> None:
        while True:
            await self._pulled.wait()
            await asyncio.sleep(RESEND_FIRST_S)
            for line in self.credits.expire(self._now_s()):
                self._left[line.owner] += len(line.granted) * line.chunk_bytes
            for device in list(self._left):
                if self._ledger.state.devices[device].state is not DeviceState.ACTIVE:
                    self._left.pop(device)  # it never comes back
            self.credits.left_bytes = self._left.total()
            self._grant()
            if not self.credits.lines and not self._left:
                self._pulled.clear()

    def _now_s(self) -> float:
        return self._ledger.now().run_s
