"""What opening a stored update shows, before the core judges it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from broker.bodies import Bodies
from coordinator.fold import Expected, Folder, Unfit
from coordinator.stored import stored_name
from schemas.events import Update


@dataclass(slots=True)
class Looked:
    """What opening an update showed. ``problem`` is empty when nothing speaks against folding it."""

    problem: str = ""
    norm: float = 0.0
    distance: float = 0.0
    update: Update | None = field(default=None)


def look(folder: Folder, bodies: Bodies, digest: bytes, expected: Expected) -> Looked:
    """Open and check the stored update ``digest``; it stays in the folder's buffer. Blocking."""
    file = bodies.open(stored_name(expected.key.id, digest))
    try:
        update = folder.read(file, expected)
    except Unfit as error:
        return Looked(problem=str(error))
    finally:
        file.close()
    norm = folder.norm()
    if not math.isfinite(norm):
        return Looked("finite: the update holds NaN, infinity or numbers beyond 1e19", 0.0, 0.0, update)
    return Looked("", norm, folder.distance(), update)
