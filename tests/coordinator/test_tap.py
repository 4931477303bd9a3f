"""A tap beside a federation: what it records is what passed, byte for byte, and nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np

from broker.bodies import Bodies
from broker.bus import Credentials
from broker.journal import Journal
from broker.memory import MemoryBus
from broker.system import system_ports
from coordinator.entries import Message, Sent, Turned, decode_entry
from coordinator.fold import read_envelope, stored_name
from coordinator.inputs import JoinAsked
from coordinator.recovery import FOLDER
from coordinator.tap.entries import DOWN, UP, Listening, Passed, decode_tapped
from coordinator.tap.place import Known
from coordinator.tap.read import payload_of
from coordinator.tap.record import Tap, recording, subscriptions
from schemas import chunks, envelope
from schemas import events as e
from schemas.codec import unpack
from schemas.enrolment import JOIN_MAGIC, WELCOME_MAGIC, open_join
from schemas.envelope import Envelope, Header, chunk_digests
from tests.standin import Federation, federation, spec

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
async def tapped(fed: Federation, directory: Path) -> AsyncIterator[Tap]:
    """Records until the context ends, and all that passed until then."""
    who = Credentials(SESSION, durable=False)
    bus = MemoryBus(fed.broker, who, subscriptions(fed.identity.federation))
    with recording(fed.ports, directory, known(fed)) as tap:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(tap.run(bus, fed.ports), name="tap")
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
            await device.say(e.ChunkPull(transfer=bytes(16), chunks=[0]))
            delta = np.full(PARAMETERS, 0.01, np.float32)
            sealed, parts = device.seal(request, *device.update(request, delta), size)
            await device.say(e.Accept(job="job", request=request.request))
            await device.send_chunks(await device.offer(sealed), parts)
        for device in (small, large):
            await device.next(e.Verdict)
    for device in (small, large):
        await device.next(e.JobFinished)


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


async def test_a_tap_has_every_message_that_the_coordinator_heard_and_sent(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "tap"
    async with federation(home, system_ports(), PARAMETERS) as fed:
        async with tapped(fed, folder) as tap:
            await train(fed)
        await fed.until(lambda: fed.coordinator.ledger.journal.queued == fed.coordinator.ledger.journal.count)
        entries = [decode_entry(found.data) for found in fed.coordinator.ledger.journal.entries()]
        identity = fed.identity
    heard = Heard(folder, identity.federation)
    up, down = heard.envelopes(UP), {one.header_bytes: one for one in heard.envelopes(DOWN).values()}
    bodies, updates, sent = Bodies(system_ports().files, home / "bodies"), 0, 0
    joins = [
        open_join(data, identity.enrolment)[2] for data in heard.payloads[UP] if data.startswith(JOIN_MAGIC)
    ]
    for entry in entries:
        if isinstance(entry, Sent):
            assert sha256(down[entry.header].body).digest() == unpack(entry.header, Header).seal.body
            sent += 1
        elif isinstance(entry.input, JoinAsked):
            assert entry.input.packed in joins
        elif isinstance(entry.input, Message):
            passed = up[entry.input.signature]
            assert passed.header_bytes == entry.input.header
            if entry.input.body:
                assert passed.body == entry.input.body
                continue
            updates += 1
            file = bodies.open(stored_name(passed.clear.recipient, passed.digest))
            assert read_envelope(file)[0].to_bytes() == passed.to_bytes()
            file.close()
            assert heard.chunks(UP) >= set(chunk_digests(passed))
    assert (updates, sum(data.startswith(WELCOME_MAGIC) for data in heard.payloads[DOWN])) == (4, 2)
    assert sent > 10
    assert tap.recorded.up == len(heard.payloads[UP])
    assert tap.recorded.down == len(heard.payloads[DOWN])
    own = [entry for entry in heard.entries if isinstance(entry, Turned)]
    assert {entry.behaviour for entry in own} == {0}
