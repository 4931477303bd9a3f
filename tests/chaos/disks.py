"""Small file systems in memory that can be filled up, for those whose disk shall be full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

SIZE_BYTES: Final = 256 << 20
PAGE_BYTES: Final = 4_096


class Disks:
    """A file system for each of the owners, mounted where it keeps its state. Without owners: none."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.places = dict(places)

    @property
    def owners(self) -> list[str]:
        return sorted(self.places)

    def __enter__(self) -> Self:
        for path in self.places.values():
            path.mkdir(parents=True)
            options = f"size={SIZE_BYTES}"
            command = ["mount", "-t", "tmpfs", "-o", options, "fedbus-chaos", str(path)]
            subprocess.run(command, check=True, capture_output=True)
        return self

    def __exit__(self, *_: object) -> None:
        for path in self.places.values():
            with suppress(subprocess.CalledProcessError):
                subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)

    def keep(self) -> None:
        """Copy what is on them to where it stays, beside each."""
        for path in self.places.values():
            shutil.copytree(
                path, path.with_name(f"{path.name}.kept"), ignore=shutil.ignore_patterns("*.sock")
            )

    @contextmanager
    def filled(self, owner: str) -> Iterator[None]:
        """There is no room in here."""
        self.fill(owner)
        try:
            yield
        finally:
            self._filler(owner).unlink()

    def fill(self, owner: str) -> None:
        """Take what room there is; files that were removed since it was taken last have made some."""
        with self._filler(owner).open("ab") as file:
            piece = SIZE_BYTES
            while piece >= PAGE_BYTES:  # all of a piece is taken, or nothing
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
                except OSError:
                    piece //= 2

    def _filler(self, owner: str) -> Path:
        return self.places[owner] / "filler"


def possible(directory: Path) -> bool:
    """Whether such a file system can be had here."""
    with suppress(OSError, subprocess.CalledProcessError), Disks({"try": directory / "try"}):
        return True
    return False
