"""A disk that can lose power. Written, synced and named durably are three different states.

After `SimFiles.crash`:

- what a file held when it was last synced is there;
- of what was written since, in order, a random part is: later appends are lost first, and the last one
  kept may be torn (cut short, or continued with zeros); a write in the middle is kept, torn or lost;
- a new, renamed or removed name whose folder was not synced since may be as before or as after.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Write:
    offset: int
    new: bytes
    old: bytes
    old_size: int


@dataclass(frozen=True, slots=True)
class _Truncate:
    size: int
    old_size: int
    tail: bytes


@dataclass(slots=True, eq=False)
class _Inode:
    data: bytearray = field(default_factory=bytearray)
    unsynced: list[_Write | _Truncate] = field(default_factory=list)

    def write(self, offset: int, new: bytes) -> None:
        old_size = len(self.data)
        old = bytes(self.data[offset : offset + len(new)])
        self.unsynced.append(_Write(offset, new, old, old_size))
        self._put(offset, new)

    def truncate(self, size: int) -> None:
        self.unsynced.append(_Truncate(size, len(self.data), bytes(self.data[size:])))
        self._cut(size)

    def crash(self, rng: random.Random) -> None:
        lost, self.unsynced = self.unsynced, []
        for change in reversed(lost):
            if isinstance(change, _Write):
                self.data[change.offset : change.offset + len(change.old)] = change.old
                del self.data[change.old_size :]
            else:
                self._cut(change.old_size)
                self.data[change.old_size - len(change.tail) :] = change.tail
        for change in lost:
            if isinstance(change, _Truncate):
                if rng.random() < 0.5:
                    return
                self._cut(change.size)
                continue
            grows = change.offset + len(change.new) > len(self.data)
            kept = rng.choice((0, len(change.new), rng.randint(0, len(change.new))))
            self._put(change.offset, change.new[:kept])
            if kept < len(change.new) and grows:
                if rng.random() < 0.25:
                    zeros = bytes(rng.randint(0, len(change.new) - kept))
                    self._put(change.offset + kept, zeros)
                return

    def _put(self, offset: int, new: bytes) -> None:
        if not new:
            return
        if offset > len(self.data):
            self._cut(offset)
        self.data[offset : offset + len(new)] = new

    def _cut(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))


Namespace = dict[Path, _Inode]


@dataclass(frozen=True, slots=True)
class _Naming:
    """A change of names that is not yet durable. Syncing any of ``folders`` makes it so."""

    folders: frozenset[Path]
    removed: Path | None = None
    added: Path | None = None
    inode: _Inode | None = None

    def apply(self, names: Namespace) -> None:
        if self.removed is not None:
            names.pop(self.removed, None)
        if self.added is not None and self.inode is not None:
            names[self.added] = self.inode


class SimFile:
    def __init__(self, disk: SimFiles, path: Path, inode: _Inode, boot: int) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._boot = boot
        self._closed = False

    def append(self, data: bytes | memoryview) -> None:
        self._change("append")
        self._inode.write(len(self._inode.data), bytes(data))

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._change("write_at")
        self._inode.write(offset, bytes(data))

    def read_at(self, offset: int, size: int) -> bytes:
        self._check()
        return bytes(self._inode.data[offset : offset + size])

    def read_into(self, offset: int, out: memoryview) -> int:
        data = self.read_at(offset, len(out))
        out[: len(data)] = data
        return len(data)

    def sync(self) -> None:
        self._change("sync")
        self._inode.unsynced.clear()

    def size(self) -> int:
        self._check()
        return len(self._inode.data)

    def truncate(self, size: int) -> None:
        self._change("truncate")
        self._inode.truncate(size)

    def close(self) -> None:
        self._closed = True

    def _change(self, what: str) -> None:
        self._check()
        self._disk.begin(what, self._path)
        self._check()

    def _check(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "file is closed", str(self._path))
        self._disk.check(self._path, self._boot)


class SimFiles:
    """A file system in memory; ``/`` exists. ``on_change`` is called before each change of the disk.

    It is given the name of the call (append, write_at, sync, truncate, open, make_dir, rename, remove,
    sync_dir) and its path, and may raise OSError (disk full), or `crash` the disk and raise anything.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[str, Path], None] | None = None
        self._names: Namespace = {}
        self._durable: Namespace = {}
        self._unsynced: list[_Naming] = []
        self._folders: set[Path] = {Path("/")}
        self._boot = 0
        self._halted = False

    def open(self, path: Path, *, create: bool = False, mode: int = 0o600) -> SimFile:
        self.check(path)
        if path in self._folders:
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        if path not in self._names:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            return self.create(path)
        return SimFile(self, path, self._names[path], self._boot)

    def create(self, path: Path, *, mode: int = 0o600) -> SimFile:
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, "there is something of this name", str(path))
        if path.parent not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
        self._change("open", path)
        inode = _Inode()
        self._rename(_Naming(frozenset({path.parent}), None, path, inode))
        return SimFile(self, path, inode, self._boot)

    def read(self, path: Path) -> bytes:
        return bytes(self._inode(path).data)

    def exists(self, path: Path) -> bool:
        self.check(path)
        return path in self._names or path in self._folders

    def names(self, path: Path) -> list[str]:
        self.check(path)
        return sorted(
            found.name for found in (*self._names, *self._folders - {Path("/")}) if found.parent == path
        )

    def make_dir(self, path: Path, *, mode: int = 0o700) -> None:
        self.check(path)
        if path in self._names:
            raise FileExistsError(errno.EEXIST, "is a file", str(path))
        if path not in self._folders:
            self.make_dir(path.parent)
            self._change("make_dir", path)
            self._folders.add(path)

    def rename(self, source: Path, target: Path) -> None:
        inode = self._inode(source)
        if target.parent not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))
        self._change("rename", target)
        if source != target:
            self._rename(_Naming(frozenset({source.parent, target.parent}), source, target, inode))

    def remove(self, path: Path) -> None:
        if not self.exists(path):
            return
        self._change("remove", path)
        for found in [found for found in self._names if found == path or path in found.parents]:
            self._rename(_Naming(frozenset({found.parent, path.parent}), found))
        self._folders -= {folder for folder in self._folders if folder == path or path in folder.parents}

    def sync_dir(self, path: Path) -> None:
        self.check(path)
        if path not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
        self._change("sync_dir", path)
        kept: list[_Naming] = []
        for naming in self._unsynced:
            if path in naming.folders:
                naming.apply(self._durable)
                # The name went away with its file: it can't come back through an older change.
                kept = [older for older in kept if older.added is None or older.added != naming.removed]
            else:
                kept.append(naming)
        self._unsynced = kept

    def halt(self) -> None:
        """From now on every call raises OSError: whoever still runs is a ghost."""
        self._halted = True

    def restart(self) -> None:
        """What ``kill -9`` and a new start leave: open files are gone, all that was written is there."""
        self._boot += 1
        self._halted = False

    def crash(self, rng: random.Random) -> None:
        """What a power cut and a new start leave, as the module says."""
        for inode in {
            id(inode): inode for inode in (*self._durable.values(), *self._names.values())
        }.values():
            inode.crash(rng)
        for naming in self._unsynced:
            if rng.random() < 0.5:
                naming.apply(self._durable)
        self._unsynced = []
        self._names = dict(self._durable)
        for path in self._names:
            self._folders.update(path.parents)
        self.restart()

    def check(self, path: Path, boot: int | None = None) -> None:
        if self._halted or (boot is not None and boot != self._boot):
            raise OSError(errno.EIO, "this machine was stopped", str(path))

    def begin(self, what: str, path: Path) -> None:
        if self.on_change is not None:
            self.on_change(what, path)

    def _change(self, what: str, path: Path) -> None:
        boot = self._boot
        self.begin(what, path)
        self.check(path, boot)

    def _inode(self, path: Path) -> _Inode:
        self.check(path)
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self._names[path]

    def _rename(self, naming: _Naming) -> None:
        naming.apply(self._names)
        self._unsynced.append(naming)
