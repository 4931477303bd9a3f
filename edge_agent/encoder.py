"""From a plain delta to what travels of it. For the worker only: it loads numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.ports import Files
from compressors import encode, topk
from schemas import work
from schemas.encodings import FLOAT32

Floats = NDArray[np.float32]


def encode_delta(files: Files, order: work.Train, delta: memoryview) -> memoryview:
    """The bytes of ``delta`` in the order's encoding. ``delta`` is used up.

    With top-k, what was left out of earlier updates of the job is added first, and what is left out now is
    written to ``out_dir``, synced; it counts when the update does. Raises `schemas.errors.Malformed`.
    """
    if order.encoding == FLOAT32:
        return delta
    values: Floats = np.frombuffer(delta, "<f4")
    if order.encoding.name != "topk":
        return memoryview(encode(order.encoding, values, order.local.seed))
    values += left_out(files, order.residual, len(values))
    data = encode(order.encoding, values, order.local.seed)
    topk.subtract_sent(data, values)
    path = Path(order.out_dir) / work.RESIDUAL_FILE
    files.remove(path)
    file = files.open(path, create=True)
    try:
        file.append(values.data.cast("B"))
        file.sync()
    finally:
        file.close()
    return memoryview(data)


def left_out(files: Files, path: str, count: int) -> Floats:
    """What earlier updates left out; zeros if there is nothing, or nothing of use."""
    try:
        found: Floats = np.frombuffer(files.read(Path(path)), "<f4") if path else np.zeros(0, "<f4")
    except (OSError, ValueError):
        found = np.zeros(0, "<f4")
    return found if len(found) == count and np.isfinite(found).all() else np.zeros(count, "<f4")
