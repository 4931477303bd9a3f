"""Large contents in chunks: an offer, grants, chunks in any order, a bitmap, and going on after a break.

`Spool` is the receiving end of one transfer, on either side. `Credits` is the coordinator's account of how
much may be under way, to it or from it: a broker's acknowledgement is not credit, so bytes in flight are
granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from broker.ports import File, Files
from schemas.errors import Forged, Malformed
from schemas.limits import (
    CHUNK_OVERHEAD_BYTES,
    GRANT_BYTES_MAX,
    GRANT_CHUNKS_MAX,
    RESEND_CAP_S,
    TRANSFERS_MAX,
)

SHARES = 8  # the credit is shared by so many transfers at least, so that a new one finds some


class Spool:
    """Chunks of one transfer in a file, each at its place behind ``preamble``; checked by digest.

    The file is the truth: after a restart `restore` hashes what is there and keeps what fits.
    """

    def __init__(
        self,
        files: Files,
        path: Path,
        *,
        digests: Sequence[bytes],
        content_bytes: int,
        chunk_bytes: int,
        preamble: bytes = b"",
    ) -> None:
        self._files = files
        self.path = path
        self.digests = digests
        self._content_bytes = content_bytes
        self._chunk_bytes = chunk_bytes
        self._preamble = preamble
        self._file: File | None = None
        self.have: set[int] = set()

    def sealed_bytes(self, index: int) -> int:
        """Size of sealed chunk ``index``."""
        plain = min(self._chunk_bytes, self._content_bytes - index * self._chunk_bytes)
        return plain + CHUNK_OVERHEAD_BYTES

    def _offset(self, index: int) -> int:
        return len(self._preamble) + index * (self._chunk_bytes + CHUNK_OVERHEAD_BYTES)

    def open(self) -> None:
        """Open the file, and keep the chunks that an earlier life left in it."""
        existed = self._files.exists(self.path)
        self._file = self._files.open(self.path, create=True)
        try:
            if self._preamble:
                self._file.write_at(0, self._preamble)
            if existed:
                self._look(self._file)
        except OSError:
            self.close()
            raise

    def _look(self, file: File) -> None:
        buffer = memoryview(bytearray(self.sealed_bytes(0)))
        for index, digest in enumerate(self.digests):
            got = file.read_into(self._offset(index), buffer[: self.sealed_bytes(index)])
            if not got:
                break
            if sha256(buffer[:got]).digest() == digest:
                self.have.add(index)

    def accept(self, index: int, sealed: memoryview) -> bool:
        """Write a chunk that is the right one; False if it was there already.

        Raises `Malformed` or `Forged` when it does not belong here; nothing is written then.
        """
        if index >= len(self.digests) or len(sealed) != self.sealed_bytes(index):
            raise Malformed(f"chunk {index} of {len(sealed)} bytes does not belong to this transfer")
        if sha256(sealed).digest() != self.digests[index]:
            raise Forged(f"chunk {index} is not the one that was signed")
        if index in self.have:
            return False
        self._opened().write_at(self._offset(index), sealed)
        self.have.add(index)
        return True

    @property
    def complete(self) -> bool:
        return len(self.have) == len(self.digests)

    def missing(self) -> list[int]:
        return [index for index in range(len(self.digests)) if index not in self.have]

    def finish(self) -> None:
        """Make the whole file durable and close it. Again: no effect."""
        if self._file is not None:
            self._file.sync()
        self.close()

    def close(self) -> None:
        """The file stays; what was written may not survive a power cut until somebody syncs it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> File:
        if self._file is None:
            raise RuntimeError(f"spool {self.path.name} is not open")
        return self._file


@dataclass(slots=True)
class Line:
    """One transfer that has, or waits for, credit. ``granted`` is a part of ``missing``; at most ``window``
    chunks of it are granted at a time."""

    owner: str
    transfer: bytes
    chunk_bytes: int
    missing: set[int]
    window: int
    granted: set[int] = field(default_factory=set)
    heard_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Granted:
    """Chunks that ``owner`` may send now."""

    owner: str
    transfer: bytes
    chunks: tuple[int, ...]


Key = tuple[str, bytes]  # owner, transfer


@dataclass(slots=True)
class Credits:
    """Bytes that may be on their way, over all devices together: first come, first served.

    Bounds: ``bytes_max`` granted and not yet arrived, ``transfers_max`` transfers at once, each with at most
    `GRANT_CHUNKS_MAX` chunks and an equal share of the bytes (at least one chunk): the more transfers wait,
    the smaller the shares, so that slow ones cannot sit on all the credit. A transfer that nothing came of
    for ``lease_s`` is forgotten; its device offers it again.
    """

    bytes_max: int = GRANT_BYTES_MAX
    transfers_max: int = TRANSFERS_MAX
    lease_s: float = RESEND_CAP_S
    lines: dict[Key, Line] = field(default_factory=dict)
    granted_bytes: int = 0
    left_bytes: int = 0
    """Granted once, and on its way still for all that is known: shares are smaller by it."""
    _queue: dict[Key, None] = field(default_factory=dict)  # hungry lines, longest waiting first
    _active: int = 0  # lines with a grant

    @property
    def waiting(self) -> int:
        """Transfers that have no grant for want of credit."""
        return len(self.lines) - self._active

    def offer(
        self,
        owner: str,
        transfer: bytes,
        missing: Iterable[int],
        chunk_bytes: int,
        now_s: float,
        *,
        window: int = GRANT_CHUNKS_MAX,
    ) -> None:
        """Chunks are to be sent. Offering again (after a break) gives up the grants, for new ones."""
        self.drop(owner, transfer)
        self.lines[owner, transfer] = Line(owner, transfer, chunk_bytes, set(missing), window, heard_s=now_s)
        self._queue[owner, transfer] = None

    def arrived(self, owner: str, transfer: bytes, index: int, now_s: float) -> None:
        """A chunk came in: its credit is free again."""
        line = self.lines.get((owner, transfer))
        if line is not None:
            line.missing.discard(index)
            self._settle(line, line.granted & {index}, now_s)

    def follow(self, owner: str, transfer: bytes, missing: Iterable[int], now_s: float) -> None:
        """The receiver says what it misses now: what was granted besides has arrived. With each arrival the
        window grows by one chunk."""
        line = self.lines.get((owner, transfer))
        if line is not None:
            line.missing = set(missing)
            came = line.granted - line.missing
            line.window = min(line.window + len(came), GRANT_CHUNKS_MAX)
            self._settle(line, came, now_s)

    def _settle(self, line: Line, came: set[int], now_s: float) -> None:
        """Free the credit of what ``came``."""
        line.heard_s = now_s
        line.granted -= came
        self.granted_bytes -= len(came) * line.chunk_bytes
        self._active -= bool(came) and not line.granted
        # Worth a grant once half a window is free, so that grants stay few.
        hungry = len(line.granted) <= min(self._window(line) // 2, len(line.missing) - 1)
        if not line.missing:
            self.drop(line.owner, line.transfer)
        elif hungry:
            self._queue[line.owner, line.transfer] = None
        else:
            self._queue.pop((line.owner, line.transfer), None)

    def _window(self, line: Line) -> int:
        """Chunks that may be granted to a transfer at a time."""
        share_bytes = max(self.bytes_max - self.left_bytes, 0) // max(SHARES, len(self.lines))
        return min(line.window, max(share_bytes // line.chunk_bytes, 1))

    def drop(self, owner: str, transfer: bytes) -> None:
        """Forget a transfer and give its credit back. No error if there is none."""
        line = self.lines.pop((owner, transfer), None)
        self._queue.pop((owner, transfer), None)
        if line is not None:
            self.granted_bytes -= len(line.granted) * line.chunk_bytes
            self._active -= bool(line.granted)

    def expire(self, now_s: float) -> list[Line]:
        """Drop the transfers that hold a grant and have been silent; returns which."""
        lines = self.lines.values()
        silent = [line for line in lines if line.granted and now_s - line.heard_s > self.lease_s]
        for line in silent:
            self.drop(line.owner, line.transfer)
        return silent

    def grant(self, now_s: float) -> list[Granted]:
        """Give what credit there is to who waits longest."""
        grants = []
        for key in list(self._queue):
            line = self.lines[key]
            free = (self.bytes_max - self.granted_bytes) // line.chunk_bytes
            room = min(self._window(line) - len(line.granted), free)
            if room <= 0 or (not line.granted and self._active >= self.transfers_max):
                continue
            fresh = sorted(line.missing - line.granted)[:room]
            self._active += not line.granted
            line.granted.update(fresh)
            line.heard_s = now_s
            self.granted_bytes += len(fresh) * line.chunk_bytes
            del self._queue[key]
            grants.append(Granted(line.owner, line.transfer, tuple(fresh)))
        return grants
