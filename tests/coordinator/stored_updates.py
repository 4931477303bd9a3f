"""Updates as they are kept: sealed to a request's key, inline or in chunks, sound or wrong in one way."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.bodies import Bodies
from coordinator.fold import Folder
from coordinator.opening import Expected
from coordinator.stored import stored, stored_name
from schemas import events as e
from schemas.envelope import Order, content_key, new_clear, seal, sign
from schemas.models import DELTA, Layout, Tensor
from schemas.sealing import aead_seal
from tests.schemas.parties import DEVICE, FEDERATION, UPDATE_BOX, secret
from tests.sim.disk import SimFiles

BASE = secret("base model")
Floats = NDArray[np.float32]


def layout_of(count: int) -> Layout:
    """``count`` trained coordinates, then frozen ones and a counter."""
    return Layout(
        job="job",
        tensors=[
            Tensor("weight", [count], "float32", "trained"),
            Tensor("embedding", [3], "float32", "frozen"),
            Tensor("num_batches_tracked", [], "int64", "counter"),
        ],
    )


def deltas(seed: int, count: int, updates: int) -> list[Floats]:
    """Changes of very different sizes, so that the order of additions shows in the bits."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)).astype("<f4")
        for _ in range(updates)
    ]


@dataclass
class Sender:
    """Makes stored updates; each field is one way to go wrong."""

    count: int = 8
    recipient: bytes = UPDATE_BOX.public
    federation: bytes = FEDERATION
    event: e.Event | None = None
    changes: dict[str, object] = field(default_factory=dict)
    chunk_bytes: int = 0  # 0: inline

    def stored(self, delta: Floats, samples: int = 1) -> bytes:
        content = delta.tobytes()
        update = {
            "job": "job",
            "request": 7,
            "base": BASE,
            "vectors": [e.Vector(DELTA, self.count)],
            "samples": samples,
            "steps": 1,
            "train_s": 0.5,
            "metrics": {},
            "evaluation": {},
            "content": sha256(content).digest(),
            "inline": b"" if self.chunk_bytes else content,
        }
        event = self.event or e.Update(**update | self.changes)  # type: ignore[arg-type]  # changed on purpose
        chunked = len(content) if self.chunk_bytes else 0
        clear = new_clear(self.federation, DEVICE.public, self.recipient, chunked, self.chunk_bytes)
        encryption, context = content_key(secret("content key"), clear)
        chunks = [
            aead_seal(encryption, index, clear.chunks, content[at : at + self.chunk_bytes], context)
            for index, at in enumerate(range(0, chunked, self.chunk_bytes or 1))
        ]
        digests = tuple(sha256(chunk).digest() for chunk in chunks)
        sealed = seal(clear, secret("content key"), self.recipient, e.encode_event(event), digests)
        return stored(sign(sealed, DEVICE, Order(0, 1))) + b"".join(chunks)


def expected(count: int) -> Expected:
    return Expected(FEDERATION, "job", 7, BASE, layout_of(count), UPDATE_BOX)


def bodies_of(*bodies: bytes) -> tuple[Bodies, list[bytes]]:
    found = Bodies(SimFiles(), Path("/bodies"))
    names = [sha256(body).digest() for body in bodies]
    for name, body in zip(names, bodies, strict=True):
        found.put(stored_name(UPDATE_BOX.id, name), [body])
    return found, names


def read(folder: Folder, body: bytes, count: int) -> None:
    """Open an update into the folder's buffer. Raises `Unfit`."""
    bodies, (name,) = bodies_of(body)
    file = bodies.open(stored_name(UPDATE_BOX.id, name))
    try:
        folder.read(file, expected(count))
    finally:
        file.close()
