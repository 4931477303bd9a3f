"""How many bytes a federation's messages were, counted from its log."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from broker.bodies import Bodies
from broker.journal import Journal
from broker.ports import Files
from coordinator.entries import Message, Sent, Turned, decode_entry
from coordinator.facts import RequestsIssued
from coordinator.keystore import Identity
from coordinator.store import Store
from coordinator.stored import stored_name
from schemas.chunks import HEAD
from schemas.codec import unpack
from schemas.envelope import LENGTH, PREFIX, Envelope, Header, open_envelope
from schemas.events import ChunkPull, decode_from_coordinator, decode_from_device
from schemas.ids import key_id
from schemas.keys import SIGNATURE_BYTES
from schemas.limits import CHUNK_OVERHEAD_BYTES, INNER_PAD_BYTES
from schemas.models import Manifest, open_manifest

Pulled = dict[tuple[str, bytes], set[int]]  # chunks by device and transfer
ENVELOPE_BYTES = PREFIX.size + SIGNATURE_BYTES  # and its header and body


@dataclass(slots=True)
class Traffic:
    """Payload bytes, as devices see it: ``up_bytes`` they sent, ``down_bytes`` they were sent.

    Every recorded message counts once, with envelope, sealed body and chunks; not counted are repeats,
    joins and welcomes, grants' chunks that were lost, and what the broker's protocol adds.
    """

    up_bytes: int = 0
    down_bytes: int = 0


def count_traffic(
    journal: Journal, files: Files, directory: Path, identity: Identity, store: Store
) -> dict[tuple[str, str], Traffic]:
    """By device and job; the job is empty for messages about none. Reads the whole log.

    Raises OSError when a recorded body is missing.
    """
    bodies = Bodies(files, directory / "bodies")
    manifests = _manifests(files, directory, identity, store)
    job_of: dict[bytes, str] = {}  # by the id of a request's key
    pulled: Pulled = defaultdict(set)
    counted: dict[tuple[str, str], Traffic] = defaultdict(Traffic)
    for logged in journal.entries():
        entry = decode_entry(logged.data)
        if isinstance(entry, Sent):
            job = getattr(decode_from_coordinator(entry.inner), "job", "")
            counted[entry.device, job].down_bytes += _sent_bytes(entry)
            continue
        job_of |= _issued(entry)
        message = entry.input
        if not isinstance(message, Message):
            continue
        if message.body:
            job, pulled_bytes = _about(message, identity, manifests, pulled)
            traffic = counted[message.device, job]
            traffic.up_bytes += ENVELOPE_BYTES + len(message.header) + len(message.body)
            traffic.down_bytes += pulled_bytes
        else:
            header = unpack(message.header, Header)
            traffic = counted[message.device, job_of.get(header.clear.recipient, "")]
            name = stored_name(header.clear.recipient, header.seal.body)
            traffic.up_bytes += bodies.size(name) - LENGTH.size
    return dict(counted)


def _issued(entry: Turned) -> dict[bytes, str]:
    issued = [fact for fact in entry.facts if isinstance(fact, RequestsIssued)]
    return {key_id(request.key): fact.job for fact in issued for request in fact.requests}


def _sent_bytes(entry: Sent) -> int:
    padded = LENGTH.size + len(entry.inner)
    padded += -padded % INNER_PAD_BYTES
    return ENVELOPE_BYTES + len(entry.header) + padded + CHUNK_OVERHEAD_BYTES


def _about(
    message: Message, identity: Identity, manifests: dict[bytes, Manifest], pulled: Pulled
) -> tuple[str, int]:
    """The job that a message is about, and the bytes of the chunks that it is the first to ask for."""
    header = unpack(message.header, Header)
    envelope = Envelope(header, message.header, message.signature, message.body)
    event = decode_from_device(open_envelope(envelope, identity.box, identity.federation).inner)
    if not isinstance(event, ChunkPull):
        return getattr(event, "job", ""), 0
    if event.transfer not in manifests:
        return "", 0
    manifest, before = manifests[event.transfer], pulled[message.device, event.transfer]
    fresh = {index for index in event.chunks if index < len(manifest.chunks)} - before
    before |= fresh
    return manifest.job, sum(HEAD.size + manifest.chunk_size(index) + CHUNK_OVERHEAD_BYTES for index in fresh)


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
