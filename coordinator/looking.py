"""What opening a stored update shows, before the core judges it."""

from __future__ import annotations

import asyncio
import math
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from broker.bodies import Bodies
from broker.ports import File, Offload
from coordinator.fold import Folder
from coordinator.opening import Expected, Opening, Unfit
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
    with closing(bodies.open(stored_name(expected.key.id, digest))) as file:
        try:
            return _found(folder, folder.read(file, expected))
        except Unfit as error:
            return Looked(problem=str(error))


async def look_beside(
    offload: Offload, folder: Folder, bodies: Bodies, digest: bytes, expected: Expected
) -> Looked:
    """`look`, outside the event loop; the two halves of a large update at the same time."""
    with ExitStack() as files:
        begun = await offload.run(begin, files, folder, bodies, digest, expected)
        if isinstance(begun, Looked):
            return begun
        file, opening = begun
        async with asyncio.TaskGroup() as tasks:
            for number, part in enumerate(opening.parts):
                tasks.create_task(
                    offload.run(folder.open_part, file, opening, part), name=f"open-part-{number}"
                )
        return await offload.run(end, folder, opening)


def begin(
    files: ExitStack, folder: Folder, bodies: Bodies, digest: bytes, expected: Expected
) -> Looked | tuple[File, Opening]:
    """What to open in parts, from the file that ``files`` closes. What has a single part is opened now."""
    file = files.enter_context(closing(bodies.open(stored_name(expected.key.id, digest))))
    try:
        opening = folder.begin(file, expected, halves=True)
    except Unfit as error:
        return Looked(problem=str(error))
    if len(opening.parts) > 1:
        return file, opening
    folder.open_part(file, opening, opening.parts[0])
    return end(folder, opening)


def end(folder: Folder, opening: Opening) -> Looked:
    """What opening its parts showed."""
    try:
        return _found(folder, folder.end(opening))
    except Unfit as error:
        return Looked(problem=str(error))


def _found(folder: Folder, update: Update) -> Looked:
    norm = folder.norm()
    if not math.isfinite(norm):
        return Looked("finite: the update holds NaN, infinity or numbers beyond 1e19", 0.0, 0.0, update)
    return Looked("", norm, folder.distance(), update)
