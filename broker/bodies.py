"""Large bodies, each stored once, in a file named by its digest.

A name stands for a whole, synced body: it is given by a rename after the body was synced. The name
itself is durable after `Bodies.sync`; so one sync covers many bodies.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from broker.ports import File, Files

_NAME = re.compile(r"[0-9a-f]{64}")
_DRAFT = ".new"


class Bodies:
    """The bodies in one folder. A name is 64 hex digits (lower case), else ValueError.

    Whether the digest is right is for the caller to check. All calls block (see `Offload`) and may come
    from several threads.
    """

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self._directory = directory
        self._drafts = itertools.count()

    def put(self, name: str, parts: Iterable[bytes]) -> None:
        """Store a body, unless it is there already (then ``parts`` is not read)."""
        path = self._path(name)
        if self._files.exists(path):
            return
        self._files.make_dir(self._directory)
        draft = path.with_name(f"{name}.{next(self._drafts)}{_DRAFT}")
        self._files.remove(draft)
        try:
            file = self._files.open(draft, create=True)
            try:
                for part in parts:
                    file.append(part)
                file.sync()
            finally:
                file.close()
            self._files.rename(draft, path)
        except BaseException:
            with suppress(OSError):
                self._files.remove(draft)
            raise

    def adopt(self, name: str, spool: Path) -> None:
        """Move a finished (synced) spool file of the same file system here; if the body is there already,
        remove it.

        No error if it was adopted before.
        """
        path = self._path(name)
        if self._files.exists(path):
            self._files.remove(spool)
            return
        self._files.make_dir(self._directory)
        self._files.rename(spool, path)

    def sync(self) -> None:
        """Make all names given and removed so far durable."""
        self._files.make_dir(self._directory)
        self._files.sync_dir(self._directory)

    def open(self, name: str) -> File:
        """For reading; the caller closes it. Raises FileNotFoundError."""
        return self._files.open(self._path(name))

    def has(self, name: str) -> bool:
        """Whether the whole body is here."""
        return self._files.exists(self._path(name))

    def size(self, name: str) -> int:
        """Bytes. Raises FileNotFoundError."""
        file = self.open(name)
        try:
            return file.size()
        finally:
            file.close()

    def remove(self, name: str) -> None:
        """No error if it is not here. Durable after `sync`."""
        self._files.remove(self._path(name))

    def names(self) -> list[str]:
        """The bodies that are here, sorted."""
        return [name for name in self._files.names(self._directory) if _NAME.fullmatch(name)]

    def sweep(self) -> None:
        """Remove drafts that a crash left. At start, before the first `put`."""
        for name in self._files.names(self._directory):
            if name.endswith(_DRAFT):
                self._files.remove(self._directory / name)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a body is named by 64 hex digits, not {name!r}")
        return self._directory / name
