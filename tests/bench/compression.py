"""What each encoding costs and saves: rates of encoding and decoding on one core, and bytes on the wire.

The vector is normal, of as many parameters as a small network has and of ten times as many. ``wire_bytes`` is
all that a device publishes of one update: the signed envelope and the chunks, sealed as the worker does it,
with their heads; ``times_less`` is float32's to it. ``square_lost`` is ‖x̂ - x‖² / ‖x‖² of one update.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from broker.system import system_ports
from compressors import decode, encode
from edge_agent.sealer import seal_update
from schemas import work
from schemas.chunks import HEAD
from schemas.encodings import ENCODINGS, FLOAT32, Encoding
from schemas.envelope import Order, sign
from schemas.events import Update, Vector
from schemas.jobs import CompressionSettings, LocalSettings
from schemas.limits import CHUNK_BYTES_DEFAULT, INLINE_BYTES_MAX
from schemas.models import DELTA
from tests.edge_agent.federation import Federation
from tests.edge_agent.party import UPDATE_KEY, tiny_model
from tests.workers import layout

SIZES = (100_000, 1_000_000)
FRACTION = 0.01
REPEATS = 5


@dataclass
class Clocked:
    """The best of some runs, in seconds."""

    best_s: float = field(default=float("inf"))

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.best_s = min(self.best_s, time.perf_counter() - self._began_s)


def measure() -> dict[str, Any]:
    """A row for each size and encoding."""
    rows: list[dict[str, Any]] = []
    for count in SIZES:
        plain = 0
        for up in ("float32", *ENCODINGS):
            rows.append(row(up, count))
            plain = plain or rows[-1]["wire_bytes"]
            rows[-1]["times_less"] = round(plain / rows[-1]["wire_bytes"], 2)
            print(rows[-1], flush=True)
    return {"fraction": FRACTION, "rows": rows}


def row(up: str, count: int) -> dict[str, Any]:
    """One encoding of one vector."""
    encoding = CompressionSettings(up=up, fraction=FRACTION).encoding(count)  # type: ignore[arg-type]  # a name of one
    values = np.random.default_rng(1).standard_normal(count).astype("<f4")
    out = np.empty(count, np.float32)
    encoding_s, decoding_s = Clocked(), Clocked()
    for seed in range(REPEATS):
        with encoding_s:
            data = encode(encoding, values, seed)
        with decoding_s:
            decode(encoding, data, out)
    lost = np.square(out.astype(np.float64) - values).sum() / np.square(values.astype(np.float64)).sum()
    return {
        "parameters": count,
        "encoding": up,
        "content_bytes": len(data),
        "bits_per_parameter": round(8 * len(data) / count, 4),
        "wire_bytes": on_the_wire(encoding, data, count),
        "square_lost": round(float(lost), 9),
        "encode_per_s": round(count / encoding_s.best_s),
        "decode_per_s": round(count / decoding_s.best_s),
    }


def on_the_wire(encoding: Encoding, data: bytes, count: int) -> int:
    """Bytes that are published of an update with this content: offered once, each chunk once."""
    federation = Federation()
    model = tiny_model(federation)
    update = Update(
        job=model.layout.job,
        request=1,
        base=model.manifest.model,
        vectors=[Vector(DELTA, count)],
        samples=1_000,
        steps=100,
        train_s=1.5,
        metrics={"loss": 0.5},
        evaluation={"loss": 0.5, "accuracy": 0.5},
        content=sha256(data).digest(),
        encoding=msgspec.UNSET if encoding == FLOAT32 else encoding,
    )
    with TemporaryDirectory(prefix="fedbus-compression-") as name:
        order = work.Train(
            task="vision",
            config={},
            dataset="",
            local=LocalSettings(),
            layout=layout(model.layout.job, count),
            manifest=model.manifest,
            job_key=model.job_key,
            model="",
            sender=federation.member().signing.public,
            update_key=UPDATE_KEY.public,
            request=1,
            chunk_bytes=CHUNK_BYTES_DEFAULT,
            out_dir=name,
            inline_max=INLINE_BYTES_MAX,
        )
        sealed = seal_update(system_ports(), order, update, memoryview(data))
        offer = len(sign(sealed, federation.member().signing, Order(0, 1)).to_bytes())
        chunks = Path(name) / work.CHUNKS_FILE
        sent = chunks.stat().st_size + HEAD.size * sealed.clear.chunks if chunks.exists() else 0
    return offer + sent
