"""The folder of sealed models, and beside each a card with all that its owner needs to use it, also offline.

A file under its final name is whole and durable; one that still grows is called ``….part``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from broker.ports import Clock, Files, write_atomic
from edge_agent.private import Drawer
from schemas.codec import pack, unpack
from schemas.errors import Malformed
from schemas.events import ModelOffer, TrainingRequest
from schemas.jobs import JOB_RUNNING
from schemas.limits import BODY_BYTES_MAX, KIB
from schemas.models import Manifest

DIR: Final = "models"
PART: Final = ".part"
CARD: Final = ".card"
CARD_BYTES_MAX: Final = BODY_BYTES_MAX + KIB


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A version as it was offered, the job's key included; 0 seconds: not all of it has come yet."""

    offer: ModelOffer
    received_wall_s: float = 0.0

    @property
    def last(self) -> bool:
        """Whether no later version of the job will come."""
        return self.offer.state != JOB_RUNNING


def base_of(request: TrainingRequest, manifest: Manifest) -> ModelOffer:
    """The version that a request is based on, as if it had been offered by itself."""
    return ModelOffer(
        job=request.job,
        version=manifest.version,
        state=JOB_RUNNING,
        manifest=request.manifest,
        layout=request.layout,
        task=request.task,
        config=request.config,
        job_key=request.job_key,
    )


def read_card(files: Files, path: Path) -> Card | None:
    """The card beside a model's file; None if there is none. Raises `schemas.errors.Malformed`, OSError."""
    try:
        return unpack(files.read(_beside(path, CARD)), Card, bytes_max=CARD_BYTES_MAX)
    except FileNotFoundError:
        return None


def jobs(files: Files, directory: Path) -> list[str]:
    """The jobs of which there are models in an agent's directory."""
    return sorted({name.split(".")[0] for name in files.names(directory / DIR)})


class Shelf:
    """The folder, for those who fill it. All blocking, and short."""

    def __init__(self, files: Files, clock: Clock, directory: Path) -> None:
        self._files = files
        self._clock = clock
        self._directory = directory
        self.drawer = Drawer(files, directory)

    def enter(self, offer: ModelOffer, manifest: Manifest) -> Path:
        """The file that the version's chunks belong in; its card is durable on return."""
        self._files.make_dir(self._directory / DIR)
        path = self._directory / DIR / f"{manifest.job}.{manifest.version}.{manifest.transfer().hex()}"
        card = self._card(path)
        if card is None or card.offer != offer:
            now_s = self._clock.wall_s() if self.whole(path) else 0.0
            self._put(path, Card(offer=offer, received_wall_s=now_s))
        return path

    def whole(self, path: Path) -> bool:
        """Whether all of a version is here, durably."""
        return self._files.exists(path)

    def part(self, path: Path) -> Path:
        """Where a version grows."""
        return _beside(path, PART)

    def finish(self, path: Path, offer: ModelOffer) -> None:
        """All chunks are in the part, synced: the version is whole from now on."""
        self._put(path, Card(offer=offer, received_wall_s=self._clock.wall_s()))
        self._files.rename(self.part(path), path)
        self._files.sync_dir(path.parent)

    def has_last(self, job: str) -> bool:
        """Whether the last version of a job is here, whole."""
        cards = [self._card(path) for path in self._paths(job) if self.whole(path)]
        return any(card.last for card in cards if card)

    def jobs(self) -> list[str]:
        """The jobs of which something is here."""
        return jobs(self._files, self._directory)

    def prune(self, job: str, keep: int) -> None:
        """Keep the newest ``keep`` whole versions of a job, and as many newer ones that still come."""
        paths = self._paths(job)
        whole = [path for path in paths if self.whole(path)]
        newer = paths[paths.index(whole[-1]) + 1 :] if whole else paths
        spared = whole[-keep:] + newer[-keep:] if keep else []
        gone = {path.name for path in paths} - {path.name for path in spared}
        for name in self._files.names(self._directory / DIR):
            if ".".join(name.split(".")[:3]) in gone:
                self._files.remove(self._directory / DIR / name)

    def remove(self, path: Path) -> None:
        """Remove a version that can't be used."""
        self._files.remove(_beside(path, CARD))
        self._files.remove(path)

    def remove_all(self) -> None:
        """Also what is private of the jobs."""
        self._files.remove(self._directory / DIR)
        self.drawer.remove_all()

    def _paths(self, job: str) -> list[Path]:
        """Of all versions of a job, whole or not, oldest first."""
        folder = self._directory / DIR
        parts = (name.split(".") for name in self._files.names(folder) if name.startswith(f"{job}."))
        found = {(int(version), transfer) for _, version, transfer, *_ in parts}
        return [folder / f"{job}.{version}.{transfer}" for version, transfer in sorted(found)]

    def _card(self, path: Path) -> Card | None:
        try:
            return read_card(self._files, path)
        except Malformed:
            return None  # damaged: as good as none

    def _put(self, path: Path, card: Card) -> None:
        write_atomic(self._files, _beside(path, CARD), pack(card))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
