"""Golden vectors of protocol version 1. ``python -m tests.schemas.vectors`` adds those of new events.

What is in the file is what other agents were built against: none of it changes, but for a new protocol
version. Sealed boxes hold an ephemeral key, so those were made once and are kept under ``sealed``;
everything else is computed from fixed keys and must come out the same, byte for byte.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from msgspec.structs import replace

from schemas import topics
from schemas.chunks import bitmap, pack_chunk
from schemas.codec import pack
from schemas.enrolment import pack_token, seal_join, seal_welcome, token_to_text
from schemas.envelope import Order, Seal, Sealed, content_key, new_clear, seal, sign
from schemas.events import encode_event
from schemas.ids import model_request_id
from schemas.keys import BoxKey, Kind, SigningKey, sign_struct
from schemas.limits import CHUNK_BYTES_MIN
from schemas.models import key_commitment, model_key, sign_layout, sign_manifest
from schemas.sealing import INNER_INDEX, aead_seal, nonce, seal_key
from tests.schemas import parties as p
from tests.schemas.examples import (
    CONTENT,
    EITHER,
    EPOCH,
    FROM_COORDINATOR,
    FROM_DEVICE,
    JOB,
    JOB_KEY,
    JOIN,
    LAYOUT,
    MANIFEST,
    TOKEN,
    TOKEN_CA,
    TRANSFER,
    UPDATE,
    WELCOME,
    cut,
    model_chunks,
)

FILE = Path(__file__).with_name("vectors.json")
Section = dict[str, str]


def load() -> dict[str, Section]:
    """The vectors as frozen. Bytes are hexadecimal."""
    loaded: dict[str, Section] = json.loads(FILE.read_text())
    return loaded


def fresh_sealed() -> Section:
    """New sealed boxes: they differ every time."""
    boxes = {
        "accept_key": seal_key(p.secret("accept"), p.COORDINATOR_BOX.public),
        "update_key": seal_key(p.secret("update"), p.UPDATE_BOX.public),
        "join": seal_join(JOIN, TOKEN, p.DEVICE),
        "welcome": seal_welcome(WELCOME, p.DEVICE_BOX.public, p.ONLINE),
    }
    return {name: data.hex() for name, data in boxes.items()}


def build(sealed: Section) -> dict[str, Section]:
    """All vectors around the given sealed boxes."""
    events = {
        str(event.__struct_config__.tag): encode_event(event)
        for event in (*FROM_DEVICE, *EITHER, *FROM_COORDINATOR)
    }
    return {
        "sealed": sealed,
        "keys": _keys(),
        "signatures": {kind.name.lower(): p.ONLINE.sign(kind, b"fedbus").hex() for kind in Kind},
        "envelope": _envelope(bytes.fromhex(sealed["accept_key"])),
        "update": _update(bytes.fromhex(sealed["update_key"])),
        "model": _model(),
        "enrolment": _enrolment(),
        "events": {name: data.hex() for name, data in events.items()},
        "small": {
            "bitmap_0_9_17": bitmap({0, 9, 17}).hex(),
            "chunk_message": pack_chunk(TRANSFER, 258, b"sixteen bytes + 1").hex(),
            "model_request_id": model_request_id(JOB).hex(),
            "topic_up": topics.up(p.FEDERATION, p.DEVICE_ID),
            "topic_down": topics.down(p.FEDERATION, p.DEVICE_ID),
        },
    }


def _keys() -> Section:
    named: dict[str, SigningKey | BoxKey] = {
        "root": p.ROOT,
        "online": p.ONLINE,
        "token": p.TOKEN_KEY,
        "device": p.DEVICE,
        "coordinator box": p.COORDINATOR_BOX,
        "enrolment box": p.ENROLMENT_BOX,
        "device box": p.DEVICE_BOX,
        "update box": p.UPDATE_BOX,
    }
    found = {"federation": p.FEDERATION.hex()}
    for name, key in named.items():
        label = name.replace(" ", "_")
        found |= {
            f"{label}_secret": p.secret(name).hex(),
            f"{label}_public": key.public.hex(),
            f"{label}_id": key.id.hex(),
        }
    return found


def _signed(sealed: Sealed, key: bytes, box: bytes, order: Order) -> Section:
    """What a message with the content key ``key`` comes out as, step by step."""
    whole = replace(sealed, seal=Seal(box, sealed.seal.commitment, sealed.seal.body))
    envelope = sign(whole, p.DEVICE, order)
    encryption, context = content_key(key, sealed.clear)
    return {
        "content_key": key.hex(),
        "clear": pack(sealed.clear).hex(),
        "ctx": context.hex(),
        "encryption_key": encryption.hex(),
        "commitment": sealed.seal.commitment.hex(),
        "inner_nonce": nonce(INNER_INDEX, sealed.clear.chunks).hex(),
        "body": sealed.body.hex(),
        "body_sha256": envelope.digest.hex(),
        "transfer": envelope.transfer.hex(),
        "header": envelope.header_bytes.hex(),
        "signature": envelope.signature.hex(),
        "message": envelope.to_bytes().hex(),
    }


def _envelope(box: bytes) -> Section:
    return {"inner": encode_event(p.ACCEPT).hex()} | _signed(
        p.sealed_accept(), p.secret("accept"), box, p.ORDER
    )


def _update(box: bytes) -> Section:
    key = p.secret("update")
    clear = new_clear(p.FEDERATION, p.DEVICE.public, p.UPDATE_BOX.public, len(CONTENT), CHUNK_BYTES_MIN)
    encryption, context = content_key(key, clear)
    chunks = [aead_seal(encryption, i, clear.chunks, part, context) for i, part in enumerate(cut(CONTENT))]
    digests = tuple(sha256(chunk).digest() for chunk in chunks)
    sealed = seal(clear, key, p.UPDATE_BOX.public, encode_event(UPDATE), digests)
    return _signed(sealed, key, box, Order(1, 43)) | {
        "inner": encode_event(UPDATE).hex(),
        "content_sha256": sha256(CONTENT).hexdigest(),
        "chunk_1_nonce": nonce(1, clear.chunks).hex(),
        "last_chunk": chunks[-1].hex(),
    }


def _model() -> Section:
    return {
        "layout": pack(LAYOUT).hex(),
        "layout_sha256": LAYOUT.digest().hex(),
        "layout_blob": sign_layout(LAYOUT, p.ONLINE).hex(),
        "manifest": pack(MANIFEST).hex(),
        "manifest_blob": sign_manifest(MANIFEST, p.ONLINE).hex(),
        "model_sha256": MANIFEST.model.hex(),
        "job_key": JOB_KEY.hex(),
        "key_commitment": key_commitment(JOB_KEY, JOB, EPOCH).hex(),
        "model_key": model_key(JOB_KEY, JOB, EPOCH, MANIFEST.model, CHUNK_BYTES_MIN).hex(),
        "transfer": MANIFEST.transfer().hex(),
        "last_chunk": model_chunks()[-1].hex(),
    }


def _enrolment() -> Section:
    packed = pack(JOIN)
    return {
        "token_text": token_to_text(TOKEN),
        "token": pack_token(TOKEN).hex(),
        "token_ca_text": token_to_text(TOKEN_CA),
        "token_ca": pack_token(TOKEN_CA).hex(),
        "join": packed.hex(),
        "join_sha256": JOIN.digest().hex(),
        "join_by_token": p.TOKEN_KEY.sign(Kind.JOIN_TOKEN, packed).hex(),
        "join_by_device": p.DEVICE.sign(Kind.JOIN_DEVICE, packed).hex(),
        "key_set_blob": p.KEY_SET_BLOB.hex(),
        "certificate_blob": p.CERTIFICATE_BLOB.hex(),
        "welcome_blob": sign_struct(Kind.WELCOME, p.ONLINE, WELCOME).hex(),
    }


if __name__ == "__main__":
    boxes = load()["sealed"] if FILE.exists() else fresh_sealed()
    FILE.write_text(json.dumps(build(boxes), indent=1) + "\n")
