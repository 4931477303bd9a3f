"""An agent's update beside the recorded one."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from coordinator.onto.report import Report
from coordinator.rekey.updates import Found
from schemas.events import Update


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
        report.differs(round_, device, "update", *digests, **_distance(recorded, content))
    if found.update.samples != played.samples:
        report.differs(round_, device, "samples", found.update.samples, played.samples)


def _distance(recorded: bytes, content: bytes) -> dict[str, float]:
    if len(recorded) != len(content):
        return {}
    was, now = (np.frombuffer(data, "<f4").astype(np.float64) for data in (recorded, content))
    if not (np.isfinite(was).all() and np.isfinite(now).all() and was.any()):
        return {}  # nothing to measure by
    length, distance = (float(np.sqrt(np.square(vector).sum())) for vector in (was, now - was))
    return {"max": float(np.abs(now - was).max()), "relative": distance / length}
