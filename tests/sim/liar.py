"""A device that lies: a member with valid keys of its own, whose updates are not what was asked for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.bus import Bus, BusUndelivered, Connected
from broker.mailbox import Mailbox, Sequencer, read
from broker.ports import Ports
from edge_agent.identity import SEQUENCE_FILE, Identity
from schemas import events as e
from schemas.chunks import pack_chunk
from schemas.envelope import MAGIC, Order, Sealed, parse, sign
from schemas.errors import WireError
from schemas.limits import CHUNK_BYTES_MIN
from schemas.models import open_layout
from schemas.window import Window
from tests.standin import TASK
from tests.workers import seal_for, update_for

LIES: Final = (
    "not a number",
    "infinite",
    "too long a step",
    "too many samples",
    "too short",
    "too long",
    "another version",
    "another job",
    "another request",
    "noise",
    "altered",
    "replayed",
    "under an old number",
    "wrong chunks",
    "two updates",
    "silence",
)


class Liar:
    """Answers each training request with one of `LIES`, which it tells to ``note`` first."""

    def __init__(
        self, directory: Path, ports: Ports, bus: Bus, identity: Identity, note: Callable[[str], None]
    ) -> None:
        self._rng = random.Random(ports.entropy.random_bytes(8))
        self._ports = ports
        self._bus = bus
        self._identity = identity
        self._note = note
        sequencer = Sequencer(ports.files, directory / SEQUENCE_FILE)
        self._mailbox = Mailbox(bus, identity.federation, identity.signing, sequencer, ports.entropy)
        self._keys = identity.keys()
        self._before = b""
        """The last message with an update that it sent."""

    async def run(self) -> None:
        """Until cancelled."""
        async with self._bus:
            async for item in self._bus.incoming():
                if isinstance(item, Connected):
                    await self._say(self._status())
                    await self._say(e.StateRequest(requests=[], key_set=self._keys.number))
                    continue
                await item.ack()
                if item.payload.startswith(MAGIC):
                    await self._hear(item.payload)

    async def _hear(self, payload: bytes) -> None:
        try:
            opened = read(
                parse(payload), self._keys.signing, Window(), self._identity.box, self._identity.federation
            )
            event = e.decode_from_coordinator(opened.inner)
        except WireError:
            return
        if isinstance(event, e.TrainingRequest):
            await asyncio.sleep(self._rng.expovariate(1 / 5))
            await self._lie(event)

    def _status(self) -> e.DeviceStatus:
        return e.DeviceStatus(
            agent="liar", cores=1, memory_bytes=1 << 30, power="mains", tasks=[TASK], samples={TASK: 1}
        )

    async def _lie(self, request: e.TrainingRequest) -> None:
        lie = self._rng.choice(LIES)
        self._note(lie)
        await self._say(e.Accept(job=request.job, request=request.request))
        count = open_layout(request.layout, self._keys.signing, request.job).trained_count
        delta, fields = self._content(lie, request, count)
        if lie == "silence":
            return
        if lie in ("noise", "replayed"):
            noise = self._rng.randbytes(self._rng.randint(1, 3_000))
            await self._send(self._before if lie == "replayed" and self._before else MAGIC + noise)
            return
        chunked = CHUNK_BYTES_MIN if lie == "wrong chunks" or self._rng.random() < 0.3 else 0
        sealed, chunks = self._seal(request, delta, fields, chunked)
        await self._offer(lie, sealed)
        if lie == "two updates":
            second, _ = self._seal(request, delta * 2, fields, 0)
            await self._offer(lie, second)
        transfer = parse(self._before).transfer
        for index, chunk in enumerate(chunks):
            piece = self._rng.randbytes(len(chunk)) if lie == "wrong chunks" else chunk
            await self._send(pack_chunk(transfer, index, piece))

    def _content(
        self, lie: str, request: e.TrainingRequest, count: int
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        delta, fields = np.full(count, 0.5, np.float32), dict[str, Any]()
        match lie:
            case "not a number":
                delta[self._rng.randrange(count)] = np.nan
            case "infinite":
                delta[self._rng.randrange(count)] = np.inf
            case "too long a step":
                delta[:] = 1e12
            case "too many samples":
                fields["samples"] = 2**40
            case "too short":
                delta = delta[:-1]
            case "too long":
                delta = np.append(delta, delta)
            case "another version":
                fields["base"] = self._rng.randbytes(32)
            case "another job":
                fields["job"] = "other"
            case "another request":
                fields["request"] = request.request + 1
        return delta, fields

    def _seal(
        self, request: e.TrainingRequest, delta: NDArray[np.float32], fields: dict[str, Any], chunked: int
    ) -> tuple[Sealed, list[bytes]]:
        update, content = update_for(request, delta, 1)
        update = msgspec.structs.replace(update, **fields)
        federation, draw = self._identity.federation, self._ports.entropy.random_bytes
        return seal_for(federation, self._identity.signing, draw, request, update, content, chunked)

    async def _offer(self, lie: str, sealed: Sealed) -> None:
        envelope = self._mailbox.sign(sealed)
        if lie == "under an old number":
            envelope = sign(sealed, self._identity.signing, Order(0, 0))
        self._before = envelope.to_bytes()
        if lie == "altered":
            at = self._rng.randrange(len(MAGIC), len(self._before))
            flipped = bytes([self._before[at] ^ 1])
            await self._send(self._before[:at] + flipped + self._before[at + 1 :])
            return
        await self._send(self._before)

    async def _say(self, event: e.Event) -> None:
        try:
            await self._mailbox.send(self._identity.up_topic, self._keys.box, event)
        except BusUndelivered:
            return

    async def _send(self, payload: bytes) -> None:
        await self._bus.publish(self._identity.up_topic, payload)
