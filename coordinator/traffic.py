"""How many bytes a federation's messages were, counted from its log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker.bodies import Bodies
from broker.journal import Journal
from broker.ports import Files
from coordinator.entries import Message, Sent, decode_entry
from coordinator.fold import stored_name
from coordinator.keystore import Identity
from coordinator.store import Store
from schemas.chunks import HEAD
from schemas.codec import unpack
from schemas.envelope import LENGTH, PREFIX, Envelope, Header, open_envelope
from schemas.events import ChunkPull, decode_from_device
from schemas.keys import SIGNATURE_BYTES
from schemas.limits import CHUNK_OVERHEAD_BYTES, INNER_PAD_BYTES
from schemas.models import Manifest, open_manifest


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes, as devices see it: ``up_bytes`` they sent, ``down_bytes`` they were sent.

    Every recorded message counts once, with envelope, sealed body and chunks; not counted are repeats,
    joins and welcomes, grants' chunks that were lost, and what MQTT adds.
    """

    up_bytes: int
    down_bytes: int


def count_traffic(
    journal: Journal, files: Files, directory: Path, identity: Identity, store: Store
) -> Traffic:
    """Read the whole log. Raises OSError when a recorded body is missing."""
    bodies = Bodies(files, directory / "bodies")
    manifests = _manifests(files, directory, identity, store)
    up_bytes = down_bytes = 0
    for logged in journal.entries():
        entry = decode_entry(logged.data)
        if isinstance(entry, Sent):
            down_bytes += _sent_bytes(entry)
        elif isinstance(entry.input, Message):
            message = entry.input
            if message.body:
                up_bytes += PREFIX.size + len(message.header) + SIGNATURE_BYTES + len(message.body)
                down_bytes += _pulled_bytes(message, identity, manifests)
            else:
                header = unpack(message.header, Header)
                name = stored_name(header.clear.recipient, header.seal.body)
                up_bytes += bodies.size(name) - LENGTH.size
    return Traffic(up_bytes, down_bytes)


def _sent_bytes(entry: Sent) -> int:
    padded = LENGTH.size + len(entry.inner)
    padded += -padded % INNER_PAD_BYTES
    return PREFIX.size + len(entry.header) + SIGNATURE_BYTES + padded + CHUNK_OVERHEAD_BYTES


def _pulled_bytes(message: Message, identity: Identity, manifests: dict[bytes, Manifest]) -> int:
    header = unpack(message.header, Header)
    envelope = Envelope(header, message.header, message.signature, message.body)
    event = decode_from_device(open_envelope(envelope, identity.box, identity.federation).inner)
    if not isinstance(event, ChunkPull) or event.transfer not in manifests:
        return 0
    manifest = manifests[event.transfer]
    return sum(
        HEAD.size + manifest.chunk_size(index) + CHUNK_OVERHEAD_BYTES
        for index in event.chunks
        if index < len(manifest.chunks)
    )


def _manifests(files: Files, directory: Path, identity: Identity, store: Store) -> dict[bytes, Manifest]:
    found: dict[bytes, Manifest] = {}
    for job in files.names(directory / "models"):
        for name in files.names(directory / "models" / job):
            if name.endswith(".manifest"):
                blob = files.read(directory / "models" / job / name)
                manifest = open_manifest(
                    blob, identity.online.public, identity.federation, job, store.layout(job)
                )
                found[manifest.transfer()] = manifest
    return found
