"""Worker processes as functions: what they make and answer, with real files and real sealing, no PyTorch."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from broker.ports import Ports
from edge_agent.encoder import encode_delta
from edge_agent.sealer import open_model, seal_update
from schemas import work
from schemas.encodings import FLOAT32
from schemas.envelope import Sealed, content_key, new_clear, seal
from schemas.events import TrainingRequest, Update, Vector, encode_event
from schemas.ids import FederationId
from schemas.keys import SigningKey
from schemas.limits import CHUNK_BYTES_DEFAULT, INLINE_BYTES_MAX
from schemas.models import DELTA, Layout, Tensor
from schemas.sealing import aead_seal

Answer = Callable[[bytes], bytes | None]


def layout(job: str, count: int) -> Layout:
    """One trained vector of ``count`` coordinates."""
    return Layout(job=job, tensors=[Tensor("w", [count], "float32", "trained")])


def maker(ports: Ports, count: int) -> Answer:
    """What the coordinator's answers: zeros to the order for initial parameters, and what a model scores."""

    def answer(data: bytes) -> bytes | None:
        order = work.decode_order(data[work.FRAME.size :])
        if isinstance(order, work.Evaluate):
            return work.encode(evaluate(ports, order))
        assert isinstance(order, work.Make)
        file = ports.files.open(Path(order.out), create=True)
        file.truncate(0)
        file.append(bytes(4 * count))
        file.sync()
        file.close()
        return work.encode(work.Made(layout=layout(order.job, count)))

    return answer


def evaluate(ports: Ports, order: work.Evaluate) -> work.Evaluated | work.Problem:
    """The loss is the mean of the parameters' squares; a data set with "missing" in its path is."""
    if "missing" in order.dataset:
        return work.problem("data", f"{order.dataset}: no such file")
    model = np.frombuffer(ports.files.read(Path(order.model)), "<f4").astype(np.float64)
    return work.Evaluated(metrics={"loss": float(np.mean(model**2))})


def trainer(ports: Ports, count: int, draw: random.Random, inline_max: int = INLINE_BYTES_MAX) -> Answer:
    """What a device's answers to the order to train: the same drawn number everywhere. Updates of more than
    ``inline_max`` bytes travel in chunks."""

    def answer(data: bytes) -> bytes | None:
        order = work.decode_order(data[work.FRAME.size :])
        assert isinstance(order, work.Train)
        open_model(ports.files, order)
        delta = memoryview(bytearray(np.full(count, draw.gauss(0.0, 1.0), "<f4").tobytes()))
        content = encode_delta(ports.files, order, delta)
        update = Update(
            job=order.manifest.job,
            request=order.request,
            base=order.manifest.model,
            vectors=[Vector(DELTA, count)],
            samples=draw.randint(1, 100),
            steps=1,
            train_s=0.0,
            metrics={},
            evaluation={},
            content=sha256(content).digest(),
            encoding=order.encoding if order.encoding != FLOAT32 else msgspec.UNSET,
        )
        sealed = seal_update(ports, replace(order, inline_max=inline_max), update, content)
        trained = work.Trained(
            clear=sealed.clear,
            seal=sealed.seal,
            samples=update.samples,
            steps=1,
            train_s=0.0,
            metrics={},
            evaluation={},
        )
        return work.encode(trained)

    return answer


def update_for(
    request: TrainingRequest, delta: NDArray[np.float32], samples: int, **changed: Any
) -> tuple[Update, bytes]:
    """The update that answers ``request``, and its content; ``changed`` replaces its fields."""
    content = delta.astype("<f4").tobytes()
    fields: dict[str, Any] = {
        "job": request.job,
        "request": request.request,
        "base": request.base,
        "vectors": [Vector(DELTA, len(delta))],
        "samples": samples,
        "steps": 1,
        "train_s": 0.0,
        "metrics": {},
        "evaluation": {},
        "content": sha256(content).digest(),
    }
    return Update(**fields | changed), content


def seal_for(
    federation: FederationId,
    key: SigningKey,
    random_bytes: Callable[[int], bytes],
    request: TrainingRequest,
    update: Update,
    content: bytes,
    chunk_bytes: int,
) -> tuple[Sealed, list[bytes]]:
    """(sealed update, sealed chunks): inline when small and ``chunk_bytes`` is 0."""
    if len(content) <= INLINE_BYTES_MAX and not chunk_bytes:
        inline = Update(**{f: getattr(update, f) for f in update.__struct_fields__} | {"inline": content})
        clear = new_clear(federation, key.public, request.update_key)
        return seal(clear, random_bytes(32), request.update_key, encode_event(inline)), []
    size = chunk_bytes or CHUNK_BYTES_DEFAULT
    clear = new_clear(federation, key.public, request.update_key, len(content), size)
    secret = random_bytes(32)
    encryption, context = content_key(secret, clear)
    chunks = [
        aead_seal(encryption, i, clear.chunks, content[i * size : (i + 1) * size], context)
        for i in range(clear.chunks)
    ]
    digests = tuple(sha256(chunk).digest() for chunk in chunks)
    return seal(clear, secret, request.update_key, encode_event(update), digests), chunks
