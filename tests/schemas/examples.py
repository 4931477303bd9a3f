"""One example of every document that travels; the golden vectors are made of them."""

from __future__ import annotations

from hashlib import sha256

import msgspec

from schemas import events as e
from schemas.chunks import bitmap
from schemas.enrolment import Join, Token, Welcome
from schemas.envelope import chunk_count
from schemas.jobs import LocalSettings
from schemas.limits import CHUNK_BYTES_MIN, PROTOCOL_VERSION
from schemas.models import (
    Layout,
    Manifest,
    Tensor,
    key_commitment,
    model_key,
    sign_layout,
    sign_manifest,
)
from schemas.sealing import aead_seal
from tests.schemas.parties import (
    ACCEPT,
    CERTIFICATE_BLOB,
    DEVICE,
    DEVICE_BOX,
    DEVICE_ID,
    ENROLMENT_BOX,
    FEDERATION,
    KEY_SET_BLOB,
    ONLINE,
    ROOT,
    UPDATE_BOX,
    secret,
)

JOB = "presses"
EPOCH = 3
JOB_KEY = secret("job key")
TRANSFER = secret("transfer")[:16]

LAYOUT = Layout(
    job=JOB,
    tensors=[
        Tensor("net.weight", [40, 50], "float32", "trained"),
        Tensor("net.bias", [50], "float32", "trained"),
        Tensor("scale", [], "float32", "frozen"),
        Tensor("steps", [1], "int64", "counter"),
    ],
    aliases={"head.weight": "net.weight"},
)
# The bytes of a model are arbitrary here: no vector depends on their being tensors of any meaning.
MODEL = bytes(range(256)) * (LAYOUT.model_bytes // 256) + bytes(LAYOUT.model_bytes % 256)


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK_BYTES_MIN] for at in range(0, len(data), CHUNK_BYTES_MIN)]


_DRAFT = Manifest(
    federation=FEDERATION,
    job=JOB,
    version=12,
    model=sha256(MODEL).digest(),
    previous=secret("previous version"),
    layout=LAYOUT.digest(),
    model_bytes=len(MODEL),
    epoch=EPOCH,
    key_commitment=key_commitment(JOB_KEY, JOB, EPOCH),
    chunk_bytes=CHUNK_BYTES_MIN,
    chunks=[bytes(32)],
)


def model_chunks() -> list[bytes]:
    """The model's chunks, sealed under the job key of the epoch."""
    key = model_key(JOB_KEY, JOB, EPOCH, _DRAFT.model, CHUNK_BYTES_MIN)
    count = chunk_count(len(MODEL), CHUNK_BYTES_MIN)
    return [aead_seal(key, i, count, plain, _DRAFT.transfer()) for i, plain in enumerate(cut(MODEL))]


MANIFEST = msgspec.structs.replace(_DRAFT, chunks=[sha256(sealed).digest() for sealed in model_chunks()])

# An update: its one vector is as long as the trained part of the layout.
CONTENT = MODEL[: 4 * LAYOUT.trained_count]
UPDATE = e.Update(
    job=JOB,
    request=7,
    base=MANIFEST.model,
    vectors=[e.Vector("delta", LAYOUT.trained_count)],
    samples=120,
    steps=20,
    train_s=1.5,
    metrics={"loss": 0.25},
    evaluation={"accuracy": 0.875},
    content=sha256(CONTENT).digest(),
)

TOKEN = Token(
    version=PROTOCOL_VERSION,
    root=ROOT.public,
    enrolment=ENROLMENT_BOX.public,
    id=secret("token id")[:16],
    seed=secret("token"),
    device=DEVICE_ID,
    urls=["mqtts://broker.example.org:8883"],
    password="correct-horse",
)
CA = """-----BEGIN CERTIFICATE-----
MIIBAQ==
-----END CERTIFICATE-----
"""
TOKEN_CA = msgspec.structs.replace(TOKEN, version=2, ca=CA)
JOIN = Join(
    federation=FEDERATION,
    root=ROOT.public,
    token=TOKEN.id,
    device=DEVICE_ID,
    signing=DEVICE.public,
    box=DEVICE_BOX.public,
    nonce=secret("join nonce"),
)
CHALLENGE = secret("challenge")
WELCOME = Welcome(join=JOIN.digest(), key_set=KEY_SET_BLOB, certificate=CERTIFICATE_BLOB, challenge=CHALLENGE)

TRAINING_REQUEST = e.TrainingRequest(
    job=JOB,
    request=7,
    round=2,
    base=MANIFEST.model,
    task="vision",
    dataset="vision",
    config={"hidden": 32, "classes": ["ok", "cracked"], "dropout": 0.5, "bias": True, "seed": None},
    local=LocalSettings(epochs=5, batch_size=8),
    manifest=sign_manifest(MANIFEST, ONLINE),
    layout=sign_layout(LAYOUT, ONLINE),
    job_key=JOB_KEY,
    update_key=UPDATE_BOX.public,
    chunk_bytes=CHUNK_BYTES_MIN,
    deadline_s=600.0,
)

MODEL_OFFER = e.ModelOffer(
    job=JOB,
    version=MANIFEST.version,
    state="finished",
    manifest=TRAINING_REQUEST.manifest,
    layout=TRAINING_REQUEST.layout,
    task=TRAINING_REQUEST.task,
    config=TRAINING_REQUEST.config,
    job_key=JOB_KEY,
)

FROM_DEVICE: tuple[e.Event, ...] = (
    e.ChallengeAnswer(challenge=CHALLENGE),
    e.DeviceStatus(
        agent="fedbus 0.1.0",
        cores=4,
        memory_bytes=2**31,
        power="mains",
        tasks=["vision"],
        samples={"vision": 120},
    ),
    e.StateRequest(requests=[e.RequestRef(JOB, 7)], key_set=1),
    ACCEPT,
    e.Decline(job=JOB, request=7, reason="data", text="data set vision is empty"),
    e.ChunkPull(transfer=MANIFEST.transfer(), chunks=[0, 1]),
    UPDATE,
    e.ModelRequest(job=JOB),
)
EITHER: tuple[e.Event, ...] = (e.Refusal(code="forged", text="the signature does not hold"),)
FROM_COORDINATOR: tuple[e.Event, ...] = (
    e.Enrolled(),
    e.StateReply(requests=[e.RequestRef(JOB, 8)], closed=[e.RequestRef(JOB, 7)]),
    TRAINING_REQUEST,
    e.OfferRead(transfer=TRANSFER, seq=43),
    e.Grant(transfer=TRANSFER, chunks=[0, 2]),
    e.Bitmap(transfer=TRANSFER, have=bitmap({0, 9, 17})),
    e.Receipt(job=JOB, request=7, digest=secret("body"), index=1234, head=secret("journal head")),
    e.Verdict(job=JOB, request=7, folded=True, reason="", round=2),
    e.JobFinished(job=JOB, state="completed", version=13),
    MODEL_OFFER,
    e.Stale(high=5000, transfer=TRANSFER),
    e.Revoked(reason="sold"),
)
