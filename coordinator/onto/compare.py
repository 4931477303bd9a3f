"""An agent's update beside the recorded one."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from compressors import decode
from coordinator.onto.report import Report
from coordinator.rekey.updates import Found
from schemas.encodings import told_encoding
from schemas.errors import WireError
from schemas.events import Update

Floats = NDArray[np.float64]

SAID: Final = ("job", "request", "base", "vectors", "samples", "steps", "encoding", "content")
"""What an update says that follows from the request; times don't, and measures are under other names here."""


def compare(
    report: Report, round_: int, device: str, found: Found | None, played: Update, content: bytes
) -> None:
    """Add to ``report`` in what the update ``played``, with its ``content``, differs from the one ``found``.

    ``max`` is the largest difference of a coordinate, ``relative`` the L2 norm of the difference to that of
    the recorded update.
    """
    if found is None:
        report.differs(round_, device, "update", "unreadable", "readable")
        return
    recorded = b"".join(found.chunks()) if found.clear.chunks else found.update.inline
    if recorded != content:
        digests = [sha256(data).hexdigest() for data in (recorded, content)]
        distance = _distance(_numbers(found.update, recorded), _numbers(played, content))
        report.differs(round_, device, "update", *digests, **distance)
    for name in SAID:
        told = [_plain(getattr(update, name)) for update in (found.update, played)]
        if told[0] != told[1] and (name != "content" or recorded == content):
            report.differs(round_, device, name, *told)


def _plain(value: object) -> object:
    """As a report has it."""
    if value is msgspec.UNSET:
        return None
    return value.hex() if isinstance(value, bytes) else msgspec.to_builtins(value)


def _numbers(update: Update, content: bytes) -> Floats:
    """What the content stands for; nothing, if it can't be read."""
    numbers = np.empty(sum(vector.length for vector in update.vectors), np.float32)
    try:
        decode(told_encoding(update.encoding), content, numbers)
    except WireError:
        return np.empty(0)
    return numbers.astype(np.float64)


def _distance(was: Floats, now: Floats) -> dict[str, float]:
    if len(was) != len(now):
        return {}
    if not (np.isfinite(was).all() and np.isfinite(now).all() and was.any()):
        return {}  # nothing to measure by
    length, distance = (float(np.sqrt(np.square(vector).sum())) for vector in (was, now - was))
    return {"max": float(np.abs(now - was).max()), "relative": distance / length}
