"""A tap in this process beside a federation in memory, and its recording read back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np

from broker.bus import Credentials
from broker.journal import Journal
from broker.memory import MemoryBus
from broker.ports import Ports
from broker.system import system_ports
from coordinator.recovery import FOLDER
from coordinator.tap.entries import DOWN, UP, Listening, Passed, decode_tapped
from coordinator.tap.place import Known
from coordinator.tap.read import payload_of
from coordinator.tap.record import Tap, recording, subscriptions
from schemas import chunks, envelope
from schemas import events as e
from schemas.envelope import Envelope
from schemas.models import open_layout, open_manifest
from tests.standin import Federation, StandIn, spec

PARAMETERS = 70_000  # five chunks of the smallest size
CHUNK_BYTES = 1 << 16
SESSION = "tap"


def known(fed: Federation) -> Known:
    """All that a tap can be told."""
    identity = fed.identity
    devices = {device.id: [device.signing] for device in fed.coordinator.ledger.state.devices.values()}
    return Known(
        federation=identity.federation.hex(), root=identity.root, key_set=identity.key_set, devices=devices
    )


@asynccontextmanager
async def tapped(fed: Federation, directory: Path, ports: Ports | None = None) -> AsyncIterator[Tap]:
    """Records until the context ends, and all that passed until then."""
    who = Credentials(SESSION, durable=False)
    bus = MemoryBus(fed.broker, who, subscriptions(fed.identity.federation))
    ports = ports or fed.ports
    with recording(ports, directory, known(fed)) as tap:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(tap.run(bus, ports), name="tap")
            await fed.until(lambda: tap.recorded.connected)
            yield tap
            await fed.until(lambda: fed.broker.queued(SESSION) == 0)
            task.cancel()


async def train(fed: Federation) -> None:
    """Two devices join; one answers in one message, the other in chunks that it offers first."""
    small, large = await fed.device("press-07"), await fed.device("press-08")
    await fed.command("submit", spec=spec(rounds=2, cohort=2, min_reports=2, chunk_bytes=CHUNK_BYTES))
    for _ in (1, 2):
        for device, size in ((small, CHUNK_BYTES * 8), (large, CHUNK_BYTES)):
            request = await device.next(e.TrainingRequest)
            await pull(device, request)
            delta = np.full(PARAMETERS, 0.01, np.float32)
            sealed, parts = device.seal(request, *device.update(request, delta), size)
            await device.say(e.Accept(job="job", request=request.request))
            await device.send_chunks(await device.offer(sealed), parts)
        for device in (small, large):
            await device.next(e.Verdict)
    for device in (small, large):
        await device.next(e.JobFinished)


async def pull(device: StandIn, request: e.TrainingRequest) -> None:
    """Get the model of ``request``, chunk by chunk."""
    assert device.member is not None
    signer = device.member.key_set.signing
    layout = open_layout(request.layout, signer, "job")
    manifest = open_manifest(request.manifest, signer, device.federation, "job", layout)
    for index in range(len(manifest.chunks)):
        await device.say(e.ChunkPull(transfer=manifest.transfer(), chunks=[index]))
        while not isinstance(await device.hear(), bytes):
            pass
    await device.say(e.ChunkPull(transfer=manifest.transfer(), chunks=[]))


class Heard:
    """A tap's recording, read back into messages."""

    def __init__(self, directory: Path, federation_id: bytes) -> None:
        journal = Journal.open(system_ports().files, directory / FOLDER, federation_id, read_only=True)
        self.entries = [decode_tapped(found.data) for found in journal.entries()]
        self.payloads: dict[str, list[bytes]] = {UP: [], DOWN: []}
        for entry in self.entries:
            if not isinstance(entry, Listening):
                way = entry.way if isinstance(entry, Passed) else UP
                self.payloads[way].append(payload_of(journal, entry))
        journal.close()

    def envelopes(self, way: str) -> dict[bytes, Envelope]:
        """By their signature."""
        found = [envelope.parse(data) for data in self.payloads[way] if data.startswith(envelope.MAGIC)]
        return {one.signature: one for one in found}

    def chunks(self, way: str) -> set[bytes]:
        """SHA-256 of what they hold."""
        found = [data for data in self.payloads[way] if data.startswith(chunks.MAGIC)]
        return {sha256(chunks.parse_chunk(data).sealed).digest() for data in found}
