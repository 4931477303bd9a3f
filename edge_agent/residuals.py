"""What updates left out (`compressors.topk`), to be added to the next one of the job.

The worker reads and writes these vectors; here they are files that are moved. What an update leaves out lies
beside it in the outbox, and takes the place of what was left out before once that update counts
(`edge_agent.outbox`), so that nothing is ever sent twice. A crash between the two is made good at the next
start: the file still lies beside the update. An update that never counts leaves the old file where it is.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from broker.ports import Files
from schemas.work import RESIDUAL_FILE

DIR: Final = "residuals"


class Residuals:
    """One file for each job that leaves something out."""

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self._folder = directory / DIR

    def path(self, job: str) -> Path:
        """Where a job's is, if there is one."""
        return self._folder / job

    def adopt(self, job: str, folder: Path) -> None:
        """The update in ``folder`` counts: what it left out, if anything, is the job's from now on. Durable
        on return; done twice, it changes nothing."""
        left = folder / RESIDUAL_FILE
        if self._files.exists(left):
            self._files.make_dir(self._folder)
            self._files.rename(left, self.path(job))
            self._files.sync_dir(self._folder)
            self._files.sync_dir(folder)  # or it might lie there again after a power cut, and be taken anew

    def keep(self, jobs: Collection[str]) -> None:
        """Remove those of all other jobs: they are made of the device's data."""
        for name in self._files.names(self._folder):
            if name not in jobs:
                self._files.remove(self._folder / name)
