"""The other side, for tests of the agent: a federation's keys, and what its coordinator would sign."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from broker.ports import Files
from edge_agent.identity import Identity
from schemas.enrolment import Join, Token, Welcome, seal_welcome
from schemas.envelope import (
    Envelope,
    Opened,
    Order,
    Sealed,
    new_clear,
    open_envelope,
    parse,
    seal,
    sign,
)
from schemas.events import (
    Event,
    FromDevice,
    ModelOffer,
    TrainingRequest,
    Update,
    decode_from_device,
    encode_event,
)
from schemas.ids import FederationId, federation_id
from schemas.jobs import LocalSettings, TaskConfig
from schemas.keys import BoxKey, Certificate, KeySet, Kind, SigningKey, sign_struct
from schemas.models import Layout, Manifest, key_commitment, model_key, sign_layout, sign_manifest
from schemas.sealing import aead_seal, chunk_open_into

DEVICE = "press-07"
JOB = "job-a"
DATA = "/data/vision.npz"


@dataclass(frozen=True)
class Model:
    """One version of a job's model, sealed for its holders."""

    layout: Layout
    content: bytes
    manifest: Manifest
    sealed: list[bytes]
    job_key: bytes


@dataclass
class Federation:
    """Keys from a seed; `order` counts the coordinator's messages."""

    seed: int = 0
    order: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.root = SigningKey.from_seed(self.bytes32())
        self.online = SigningKey.from_seed(self.bytes32())
        self.box = BoxKey.from_secret(self.bytes32())
        self.enrolment = BoxKey.from_secret(self.bytes32())
        self.token_key = SigningKey.from_seed(self.bytes32())
        self.challenge = self.bytes32()

    def bytes32(self) -> bytes:
        return self.random.randbytes(32)

    @property
    def id(self) -> FederationId:
        return federation_id(self.root.public)

    def key_set(self, number: int = 1, root: SigningKey | None = None) -> bytes:
        keys = KeySet(
            number=number,
            federation=self.id,
            previous=b"",
            next_root=bytes(32),
            signing=self.online.public,
            box=self.box.public,
            enrolment=self.enrolment.public,
        )
        return sign_struct(Kind.KEY_SET, root or self.root, keys)

    def certificate(self, device: str, signing: bytes, box: bytes) -> bytes:
        certificate = Certificate(
            federation=self.id, device=device, entity="works", signing=signing, box=box, key_set=1
        )
        return sign_struct(Kind.CERTIFICATE, self.online, certificate)

    def token(self, device: str = DEVICE, urls: Iterable[str] = ("memory:test",)) -> Token:
        return Token(
            1,
            self.root.public,
            self.enrolment.public,
            bytes(16),
            self.token_key.seed,
            device,
            list(urls),
            "secret",
        )

    def member(self, device: str = DEVICE) -> Identity:
        """A device that is enrolled and active."""
        signing, box = SigningKey.from_seed(self.bytes32()), BoxKey.from_secret(self.bytes32())
        return Identity(
            device=device,
            root=self.root.public,
            urls=["memory:test"],
            password="secret",
            signing_seed=signing.seed,
            box_secret=box.secret,
            nonce=self.bytes32(),
            key_set=self.key_set(),
            certificate=self.certificate(device, signing.public, box.public),
            challenge=self.challenge,
            active=True,
        )

    def welcome(
        self, join: Join, *, refused: str = "", number: int = 1, root: SigningKey | None = None
    ) -> bytes:
        certificate = b"" if refused else self.certificate(join.device, join.signing, join.box)
        challenge = b"" if refused else self.challenge
        welcome = Welcome(
            join=join.digest(),
            key_set=self.key_set(number, root),
            certificate=certificate,
            challenge=challenge,
            refused=refused,
        )
        return seal_welcome(welcome, join.box, self.online)

    def envelope(self, identity: Identity, event: Event) -> bytes:
        """What the coordinator says to a device, under its next number."""
        return self.envelope_to(identity.box.public, event)

    def envelope_to(self, box: bytes, event: Event) -> bytes:
        self.order += 1
        clear = new_clear(self.id, self.online.public, box)
        sealed = seal(clear, self.bytes32(), box, encode_event(event))
        return sign(sealed, self.online, Order(0, self.order)).to_bytes()

    def read(self, identity: Identity, payload: bytes) -> FromDevice:
        """A small message of a device, verified and opened."""
        envelope = parse(payload)
        envelope.check_signature(identity.signing.public)
        return decode_from_device(open_envelope(envelope, self.box, self.id).inner)

    def model(
        self, layout: Layout, content: bytes, *, version: int = 0, epoch: int = 0, chunk_bytes: int = 4096
    ) -> Model:
        job_key = sha256(b"job key" + bytes([epoch])).digest()
        digest = sha256(content).digest()
        key = model_key(job_key, layout.job, epoch, digest, chunk_bytes)
        count = -(-len(content) // chunk_bytes)
        manifest = Manifest(
            federation=self.id,
            job=layout.job,
            version=version,
            model=digest,
            previous=bytes(32),
            layout=layout.digest(),
            model_bytes=len(content),
            epoch=epoch,
            key_commitment=key_commitment(job_key, layout.job, epoch),
            chunk_bytes=chunk_bytes,
            chunks=[bytes(32)] * count,
        )
        sealed = [
            aead_seal(key, i, count, content[i * chunk_bytes : (i + 1) * chunk_bytes], manifest.transfer())
            for i in range(count)
        ]
        signed = {"chunks": [sha256(chunk).digest() for chunk in sealed]}
        whole = Manifest(**{name: getattr(manifest, name) for name in manifest.__struct_fields__} | signed)
        return Model(layout, content, whole, sealed, job_key)

    def request(
        self,
        model: Model,
        update_key: BoxKey,
        *,
        number: int = 1,
        round_: int = 1,
        task: str = "vision",
        config: TaskConfig | None = None,
        local: LocalSettings | None = None,
        job_key: bytes = b"",
        signer: SigningKey | None = None,
    ) -> TrainingRequest:
        return TrainingRequest(
            job=model.layout.job,
            request=number,
            round=round_,
            base=model.manifest.model,
            task=task,
            dataset="",
            config=config or {},
            local=local or LocalSettings(),
            manifest=sign_manifest(model.manifest, signer or self.online),
            layout=sign_layout(model.layout, signer or self.online),
            job_key=job_key or model.job_key,
            update_key=update_key.public,
            chunk_bytes=4096,
            deadline_s=60.0,
        )

    def offer(self, model: Model, *, state: str = "finished", signer: SigningKey | None = None) -> ModelOffer:
        return ModelOffer(
            job=model.layout.job,
            version=model.manifest.version,
            state=state,
            manifest=sign_manifest(model.manifest, signer or self.online),
            layout=sign_layout(model.layout, self.online),
            task="vision",
            config={"hidden": 8},
            job_key=model.job_key,
        )


def open_update(
    sealed: Sealed, chunks: bytes, reader: BoxKey, identity_key: SigningKey
) -> tuple[Update, bytes]:
    """The update and its content, opened as the coordinator would."""
    envelope = sign(sealed, identity_key, Order(0, 1))
    opened = open_envelope(envelope, reader, sealed.clear.federation)
    return opened_update(envelope, opened, chunks)


def opened_update(envelope: Envelope, opened: Opened, chunks: bytes) -> tuple[Update, bytes]:
    event = decode_from_device(opened.inner)
    assert isinstance(event, Update)
    clear = envelope.clear
    if not clear.chunks:
        assert sha256(event.inline).digest() == event.content
        return event, event.inline
    content = bytearray(clear.content_bytes)
    at = 0
    for index, digest in enumerate(opened.chunk_digests):
        size = clear.chunk_size(index)
        sealed = chunks[at : at + size + 16]
        assert sha256(sealed).digest() == digest
        out = memoryview(content)[index * clear.chunk_bytes :][:size]
        chunk_open_into(opened.key, index, clear.chunks, memoryview(sealed), opened.context, out)
        at += size + 16
    assert sha256(content).digest() == event.content
    return event, bytes(content)


def put(files: Files, path: Path, data: bytes) -> None:
    """A file of the device's owner."""
    files.make_dir(path.parent)
    files.remove(path)
    file = files.open(path, create=True)
    file.append(data)
    file.sync()
    file.close()
    files.sync_dir(path.parent)
