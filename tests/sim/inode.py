"""What one file of the simulated disk holds, and what a power cut leaves of it (see ``tests.sim.disk``)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
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
class Inode:
    data: bytearray = field(default_factory=bytearray)
    unsynced: list[_Write | _Truncate] = field(default_factory=list)

    def append(self, new: bytes) -> None:
        size = len(self.data)
        self.unsynced.append(_Write(size, new, b"", size))
        self.data += new

    def write(self, offset: int, new: bytes) -> None:
        old_size = len(self.data)
        old = bytes(self.data[offset : offset + len(new)])
        self.unsynced.append(_Write(offset, new, old, old_size))
        self._put(offset, new)

    def truncate(self, size: int) -> None:
        self.unsynced.append(_Truncate(size, len(self.data), bytes(self.data[size:])))
        self._cut(size)

    def crash(self, rng: random.Random) -> bool:
        """Keep what a power cut keeps; whether a write was torn."""
        lost, self.unsynced = self.unsynced, []
        for change in reversed(lost):
            if isinstance(change, _Write):
                self.data[change.offset : change.offset + len(change.old)] = change.old
                del self.data[change.old_size :]
            else:
                self._cut(change.old_size)
                self.data[change.old_size - len(change.tail) :] = change.tail
        torn = False
        for change in lost:
            if isinstance(change, _Truncate):
                if rng.random() < 0.5:
                    return torn
                self._cut(change.size)
                continue
            grows = change.offset + len(change.new) > len(self.data)
            kept = rng.choice((0, len(change.new), rng.randint(0, len(change.new))))
            torn |= 0 < kept < len(change.new)
            self._put(change.offset, change.new[:kept])
            if kept < len(change.new) and grows:
                if rng.random() < 0.25:
                    zeros = bytes(rng.randint(0, len(change.new) - kept))
                    self._put(change.offset + kept, zeros)
                return torn
        return torn

    def _put(self, offset: int, new: bytes) -> None:
        if not new:
            return
        if offset > len(self.data):
            self._cut(offset)
        self.data[offset : offset + len(new)] = new

    def _cut(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
