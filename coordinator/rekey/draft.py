"""Files that count only once all of them are there: each is synced once, at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker.ports import File, Files


@dataclass(frozen=True, slots=True)
class _DraftFile:
    """Open, and not synced before the end."""

    file: File

    def append(self, data: bytes | memoryview) -> None:
        self.file.append(data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.file.write_at(offset, data)

    def read_at(self, offset: int, size: int) -> bytes:
        return self.file.read_at(offset, size)

    def read_into(self, offset: int, out: memoryview) -> int:
        return self.file.read_into(offset, out)

    def sync(self) -> None:
        """Later."""

    def size(self) -> int:
        return self.file.size()

    def truncate(self, size: int) -> None:
        self.file.truncate(size)

    def close(self) -> None:
        self.file.close()


class DraftFiles:
    """`broker.ports.Files` whose syncs wait for `settle`: a log with as many frames as a year has would cost
    as many syncs otherwise."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._written: dict[Path, None] = {}
        self._folders: dict[Path, None] = {}

    def open(self, path: Path, *, create: bool = False, mode: int = 0o600) -> File:
        if create:
            self._written[path] = None
        return _DraftFile(self._files.open(path, create=create, mode=mode))

    def create(self, path: Path, *, mode: int = 0o600) -> File:
        self._written[path] = None
        return _DraftFile(self._files.create(path, mode=mode))

    def read(self, path: Path) -> bytes:
        return self._files.read(path)

    def exists(self, path: Path) -> bool:
        return self._files.exists(path)

    def names(self, path: Path) -> list[str]:
        return self._files.names(path)

    def make_dir(self, path: Path, *, mode: int = 0o700) -> None:
        self._files.make_dir(path, mode=mode)

    def rename(self, source: Path, target: Path) -> None:
        self._files.rename(source, target)
        if self._written.pop(source, self) is None:
            self._written[target] = None

    def remove(self, path: Path) -> None:
        self._files.remove(path)
        self._written.pop(path, None)

    def sync_dir(self, path: Path) -> None:
        self._folders[path] = None

    def settle(self) -> None:
        """Sync everything that was written, and the folders it is in."""
        for path in self._written:
            file = self._files.open(path)
            try:
                file.sync()
            finally:
                file.close()
        for path in {path.parent: None for path in self._written} | self._folders:
            self._files.sync_dir(path)
