"""What training leaves on this device for its next round of the job, and nobody else gets: ``private/<job>``,
and ``residuals/<job>`` of what updates left out (`compressors.topk`).

A worker reads the file, and writes the next one beside the update that it made. That takes the place of the
old one as soon as the update is in the outbox, by a rename: so after a crash at any point, what is kept is
what the last update was made with, neither older nor newer.

A file in ``private/`` is SHA-256 of the rest ‖ digest of the layout ‖ SCAFFOLD's control variate, if the
layout has control tensors, in their order ‖ the layout's personal tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from broker.ports import Files
from schemas import work
from schemas.models import Layout

DIR: Final = "private"
RESIDUALS: Final = "residuals"
LEFT: Final = {DIR: work.PRIVATE_FILE, RESIDUALS: work.RESIDUAL_FILE}
DIGEST_BYTES: Final = 32


class Drawer:
    """One of the folders, for the agent: a file for each job, as large as its layout says. All blocking,
    short."""

    def __init__(self, files: Files, directory: Path, name: str = DIR) -> None:
        self._files = files
        self._folder = directory / name
        self._left = LEFT[name]

    def path(self, job: str) -> Path:
        """What is kept of a job; there is no such file before its first update was made."""
        return self._folder / job

    def adopt(self, job: str, folder: Path) -> None:
        """The update in ``folder`` counts, so what was left beside it does. Durable on return; done twice, it
        changes nothing."""
        left = folder / self._left
        if self._files.exists(left):
            self._files.make_dir(self._folder)
            self._files.rename(left, self.path(job))
            self._files.sync_dir(self._folder)
            self._files.sync_dir(folder)  # or it might lie there again after a power cut, and be taken anew

    def jobs(self) -> list[str]:
        """The jobs of which something is kept."""
        return self._files.names(self._folder)

    def remove(self, job: str) -> None:
        self._files.remove(self.path(job))

    def keep(self, jobs: Collection[str]) -> None:
        """Remove those of all other jobs."""
        for job in set(self.jobs()) - set(jobs):
            self.remove(job)

    def remove_all(self) -> None:
        self._files.remove(self._folder)


def read(files: Files, path: Path, layout: Layout) -> bytes:
    """The tensors that are kept in ``path``; empty if there are none, or they are damaged or of another
    layout."""
    try:
        data = files.read(path)
    except OSError:
        return b""
    body = data[DIGEST_BYTES:]
    whole = data[:DIGEST_BYTES] == sha256(body).digest() and body[:DIGEST_BYTES] == layout.digest()
    tensors = body[DIGEST_BYTES:]
    return tensors if whole and len(tensors) == 4 * layout.private_count else b""


def write(files: Files, path: Path, layout: Layout, parts: Sequence[bytes | memoryview]) -> None:
    """Keep tensors in ``path``; their bytes are durable on return, its name is not."""
    digest = sha256(layout.digest())
    for part in parts:
        digest.update(part)
    files.remove(path)
    file = files.open(path, create=True)
    try:
        for data in (digest.digest(), layout.digest(), *parts):
            file.append(data)
        file.sync()
    finally:
        file.close()


def overlaid(files: Files, directory: Path, layout: Layout, model: bytearray) -> bool:
    """Put what an agent in ``directory`` keeps of the model's job in its place in ``model``; whether there
    was any."""
    kept = read(files, directory / DIR / layout.job, layout)[4 * layout.control_count :]
    start = 4 * (layout.trained_count + layout.control_count)
    model[start : start + len(kept)] = kept
    return bool(kept)
