"""Snapshots of the state beside the log, so that recovery reads only what came after the last one.

``snapshots/<index>.fbs``, integers little-endian: magic ``FBS1``, u32 version, federation id (16 bytes), u64
index of the entry that the state is as of, chain (32 bytes) of that entry's frame, the image, SHA-256 of all
that. None is written before the log holds its entry durably; one that does not agree with it is passed over.

The version rises when the same facts give another state than before; what is the base of a pruned log must
stay readable.
"""

from __future__ import annotations

import logging
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from broker.journal import Mark
from broker.ports import Files, write_atomic
from coordinator.image import Recovered, decode_image

FOLDER: Final = "snapshots"
BASE: Final = "base.fbs"  # what the journal follows on, once its beginning was pruned
KEPT: Final = 2  # the newest; the older one counts if the newer one was damaged

_MAGIC = b"FBS1"
_VERSION = 1
_HEADER = struct.Struct("<4sI16sQ32s")
_NAME = re.compile(r"[0-9]{12}\.fbs")
_DIGEST_BYTES = 32

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state as of the entry ``mark``."""

    mark: Mark
    recovered: Recovered
    path: Path


class Snapshots:
    """The snapshots of one state directory. All blocking."""

    def __init__(self, files: Files, directory: Path, federation: bytes) -> None:
        self._files = files
        self._folder = directory / FOLDER
        self._federation = federation

    def put(self, mark: Mark, image: bytes) -> None:
        """Keep the state as of ``mark``, which is durable in the log. All but the `KEPT` newest go, and those
        that are newer yet: they are of another history."""
        newest = f"{mark.index:012d}.fbs"
        self._write(newest, mark, image)
        kept = [name for name in self._names() if name <= newest][-KEPT:]
        for name in self._files.names(self._folder):
            if name not in kept and _NAME.match(name):  # drafts that a crash left, too
                self._files.remove(self._folder / name)

    def put_base(self, mark: Mark, image: bytes) -> None:
        """Keep the state as of ``mark`` until another base takes its place."""
        self._write(BASE, mark, image)

    def base(self) -> Snapshot | None:
        """What `put_base` kept; None if it is not there, or not whole."""
        return next((found for found in self.read() if found.path.name == BASE), None)

    def _write(self, name: str, mark: Mark, image: bytes) -> None:
        self._files.make_dir(self._folder)
        data = _HEADER.pack(_MAGIC, _VERSION, self._federation, mark.index, mark.head) + image
        write_atomic(self._files, self._folder / name, data + sha256(data).digest())

    def read(self) -> list[Snapshot]:
        """Those that are whole, the newest first; the others are told in the log."""
        found, broken = self.look()
        for path, text in broken:
            log.warning("snapshot %s is passed over: %s", path, text)
        return found

    def look(self) -> tuple[list[Snapshot], list[tuple[Path, str]]]:
        """Those that are whole, the newest first, and those that are not, with the reason."""
        found, broken = [], []
        for name in [*reversed(self._names()), BASE]:
            path = self._folder / name
            with suppress(FileNotFoundError):  # a coordinator beside us removed it
                try:
                    found.append(self._decoded(path, self._files.read(path)))
                except ValueError as error:
                    broken.append((path, str(error)))
        return found, broken

    def _decoded(self, path: Path, data: bytes) -> Snapshot:
        """Raises ValueError."""
        if len(data) < _HEADER.size + _DIGEST_BYTES or sha256(data[:-32]).digest() != data[-_DIGEST_BYTES:]:
            raise ValueError("it is damaged")
        magic, version, federation, index, head = _HEADER.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError("its format is unknown here")
        if federation != self._federation:
            raise ValueError("it is of another federation")
        try:
            return Snapshot(Mark(index, head), decode_image(data[_HEADER.size : -_DIGEST_BYTES]), path)
        except msgspec.DecodeError as error:
            raise ValueError(f"its state is not one of this fedbus ({error})") from error

    def _names(self) -> list[str]:
        return [name for name in self._files.names(self._folder) if _NAME.fullmatch(name)]
