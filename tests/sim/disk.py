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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NoReturn

from tests.sim.inode import Inode

STOPPED: Final = "this machine was stopped"
Namespace = dict[str, Inode]  # by path as text, which is several times faster than Path objects


@dataclass(slots=True)
class _Naming:
    """A change of names that is not yet durable. Syncing any of ``folders`` makes it so."""

    folders: tuple[str, ...]
    removed: str = ""
    added: str = ""
    inode: Inode | None = None

    def apply(self, names: Namespace) -> None:
        if self.removed:
            names.pop(self.removed, None)
        if self.inode is not None:
            names[self.added] = self.inode


@lru_cache(maxsize=4_096)
def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


class SimFile:
    def __init__(self, disk: SimFiles, path: Path, inode: Inode, boot: int) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._boot = boot
        self._closed = False

    def append(self, data: bytes | memoryview) -> None:
        self._change("append")
        self._inode.append(bytes(data))

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._change("write_at")
        if offset and self._inode.data[offset : offset + len(data)] == bytes(data):
            self._disk.rewritten.append(self._path)
        self._inode.write(offset, bytes(data))

    def read_at(self, offset: int, size: int) -> bytes:
        disk = self._disk
        if self._closed or disk.halted or disk.boot != self._boot:
            self._refuse()
        return bytes(self._inode.data[offset : offset + size])

    def read_into(self, offset: int, out: memoryview) -> int:
        data = self.read_at(offset, len(out))
        out[: len(data)] = data
        return len(data)

    def sync(self) -> None:
        self._change("sync")
        self._inode.unsynced.clear()

    def size(self) -> int:
        disk = self._disk
        if self._closed or disk.halted or disk.boot != self._boot:
            self._refuse()
        return len(self._inode.data)

    def truncate(self, size: int) -> None:
        self._change("truncate")
        self._inode.truncate(size)

    def close(self) -> None:
        self._closed = True

    def _change(self, what: str) -> None:
        disk = self._disk
        if self._closed or disk.halted or disk.boot != self._boot:
            self._refuse()
        disk.begin(what, self._path)
        if not self._here():
            self._refuse()

    def _here(self) -> bool:
        return not self._disk.halted and self._disk.boot == self._boot

    def _refuse(self) -> NoReturn:
        if self._closed:
            raise OSError(errno.EBADF, "file is closed", str(self._path))
        raise OSError(errno.EIO, STOPPED, str(self._path))


class SimFiles:
    """A file system in memory; ``/`` exists. ``on_change`` is called before each change of the disk.

    It is given the name of the call (append, write_at, sync, truncate, open, make_dir, rename, remove,
    sync_dir) and its path, and may raise OSError (disk full), or `crash` the disk and raise anything.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[str, Path], None] | None = None
        self.watch: Callable[[str, Path], None] | None = None
        """Told of the same, before ``on_change``; changes and raises nothing."""
        self.rewritten: list[Path] = []
        """Where bytes were written, not at the start, that stood there already."""
        self.torn = 0
        """Writes that power cuts tore, so far."""
        self._names: Namespace = {}
        self._durable: Namespace = {}
        self._unsynced: list[_Naming] = []
        self._folders: dict[str, dict[str, None]] = {"/": {}}  # what each holds: names of files and folders
        self.boot = 0
        self.halted = False

    def fill(self, other: SimFiles) -> None:
        """Hold what ``other`` holds and nothing else, all of it durable."""
        self._names = {path: Inode(bytearray(inode.data)) for path, inode in other._names.items()}
        self._durable = dict(self._names)
        self._folders = {path: dict(held) for path, held in other._folders.items()}

    def open(self, path: Path, *, create: bool = False, mode: int = 0o600) -> SimFile:
        self._check(path)
        name = str(path)
        if name in self._folders:
            raise IsADirectoryError(errno.EISDIR, "is a folder", name)
        if name not in self._names:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            return self.create(path)
        return SimFile(self, path, self._names[name], self.boot)

    def create(self, path: Path, *, mode: int = 0o600) -> SimFile:
        name = str(path)
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, "there is something of this name", name)
        if _parent(name) not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", name)
        self._change("open", path)
        inode = Inode()
        self._rename(_Naming((_parent(name),), "", name, inode))
        return SimFile(self, path, inode, self.boot)

    def read(self, path: Path) -> bytes:
        return bytes(self._inode(path).data)

    def exists(self, path: Path) -> bool:
        self._check(path)
        name = str(path)
        return name in self._names or name in self._folders

    def names(self, path: Path) -> list[str]:
        self._check(path)
        return sorted(self._folders.get(str(path), ()))

    def make_dir(self, path: Path, *, mode: int = 0o700) -> None:
        self._check(path)
        name = str(path)
        if name in self._names:
            raise FileExistsError(errno.EEXIST, "is a file", name)
        if name not in self._folders:
            self.make_dir(path.parent)
            self._change("make_dir", path)
            self._add_folder(name)

    def rename(self, source: Path, target: Path) -> None:
        inode, old, new = self._inode(source), str(source), str(target)
        if _parent(new) not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", _parent(new))
        self._change("rename", target)
        if old != new:
            self._rename(_Naming((_parent(old), _parent(new)), old, new, inode))

    def remove(self, path: Path) -> None:
        if not self.exists(path):
            return
        self._change("remove", path)
        name = str(path)
        if name in self._names:
            self._rename(_Naming((_parent(name),), name))
            return
        for found in [found for found in self._names if _inside(found, name)]:
            self._rename(_Naming((_parent(found), _parent(name)), found))
        for folder in [folder for folder in self._folders if _inside(folder, name)]:
            del self._folders[folder]
        self._folders[_parent(name)].pop(path.name, None)

    def sync_dir(self, path: Path) -> None:
        self._check(path)
        name = str(path)
        if name not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", name)
        self._change("sync_dir", path)
        kept: list[_Naming] = []
        for naming in self._unsynced:
            if name in naming.folders:
                naming.apply(self._durable)
                # The name went away with its file: it can't come back through an older change.
                kept = [older for older in kept if not older.added or older.added != naming.removed]
            else:
                kept.append(naming)
        self._unsynced = kept

    @property
    def life(self) -> int:
        """Which start of the machine this is; -1 while it is halted."""
        return -1 if self.halted else self.boot

    def halt(self) -> None:
        """From now on every call raises OSError: whoever still runs is a ghost."""
        self.halted = True

    def restart(self) -> None:
        """What ``kill -9`` and a new start leave: open files are gone, all that was written is there."""
        self.boot += 1
        self.halted = False

    def crash(self, rng: random.Random) -> None:
        """What a power cut and a new start leave, as the module says."""
        for inode in {
            id(inode): inode for inode in (*self._durable.values(), *self._names.values())
        }.values():
            self.torn += inode.crash(rng)
        for naming in self._unsynced:
            if rng.random() < 0.5:
                naming.apply(self._durable)
        self._unsynced = []
        self._names = dict(self._durable)
        for folder, held in self._folders.items():
            for name in [name for name in held if f"{folder.rstrip('/')}/{name}" not in self._folders]:
                del held[name]
        for name in self._names:
            self._enter(name)
        self.restart()

    def _check(self, path: Path) -> None:
        if self.halted:
            raise OSError(errno.EIO, STOPPED, str(path))

    def begin(self, what: str, path: Path) -> None:
        if self.watch is not None:
            self.watch(what, path)
        if self.on_change is not None:
            self.on_change(what, path)

    def _change(self, what: str, path: Path) -> None:
        boot = self.boot
        self.begin(what, path)
        if self.halted or self.boot != boot:
            raise OSError(errno.EIO, STOPPED, str(path))

    def _inode(self, path: Path) -> Inode:
        self._check(path)
        inode = self._names.get(str(path))
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return inode

    def _rename(self, naming: _Naming) -> None:
        naming.apply(self._names)
        if naming.removed:
            folder, _, name = naming.removed.rpartition("/")
            self._folders[folder or "/"].pop(name, None)
        if naming.added:
            self._enter(naming.added)
        self._unsynced.append(naming)

    def _enter(self, path: str) -> None:
        """Have a name stand in its folder, which is made again if need be."""
        folder, _, name = path.rpartition("/")
        self._add_folder(folder or "/")
        self._folders[folder or "/"][name] = None

    def _add_folder(self, path: str) -> None:
        if path not in self._folders:
            self._folders[path] = {}
            self._enter(path)
