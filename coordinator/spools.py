"""The files of uploads: spools that grow, each begun with the envelope that offered it, and the bodies that
whole ones become. All blocking; everything may be done again after it failed half-way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from broker.bodies import Bodies
from broker.ports import Files
from broker.transfer import Spool
from coordinator.stored import read_envelope, stored, stored_name
from schemas.envelope import Envelope, chunk_digests
from schemas.errors import WireError

PART = ".part"


@dataclass(frozen=True, slots=True)
class Begun:
    """A spool, and the envelope that it was begun with: the same body may be signed under other numbers."""

    envelope: Envelope
    spool: Spool


def body_name(received: Envelope) -> str:
    """What an update is called among the bodies."""
    return stored_name(received.clear.recipient, received.digest)


class Spools:
    """The folder of spools beside the bodies."""

    def __init__(self, files: Files, folder: Path, bodies: Bodies) -> None:
        self._files = files
        self._folder = folder
        self._bodies = bodies

    def path(self, received: Envelope) -> Path:
        return self._folder / f"{body_name(received)}{PART}"

    def open(self, path: Path, received: Envelope | None) -> Begun | None:
        """The spool at ``path``, as it is; begun with ``received`` if there is none. What it holds is hashed
        again: the file is the truth. None if there is neither."""
        self._files.make_dir(self._folder)
        envelope = self._envelope(path) or received
        if envelope is None:
            return None
        spool = Spool(
            self._files,
            path,
            digests=chunk_digests(envelope),
            content_bytes=envelope.clear.content_bytes,
            chunk_bytes=envelope.clear.chunk_bytes,
            preamble=stored(envelope),
        )
        spool.open()
        return Begun(envelope, spool)

    def _envelope(self, path: Path) -> Envelope | None:
        """What a spool was begun with. None if a crash left no whole one; the spool is removed then."""
        if not self._files.exists(path):
            return None
        file = self._files.open(path)
        try:
            envelope: Envelope | None = read_envelope(file)[0]
        except WireError:
            envelope = None
        finally:
            file.close()
        if envelope is None or sha256(envelope.body).digest() != envelope.digest:
            self._files.remove(path)
            return None
        return envelope

    def left(self) -> Iterator[tuple[Path, Envelope]]:
        """What an earlier life of this coordinator began; broken spools are removed."""
        for name in self._files.names(self._folder):
            path = self._folder / name
            envelope = self._envelope(path)
            if envelope is not None:
                yield path, envelope

    def keep(self, begun: Begun) -> None:
        """Make a complete spool a body, durably."""
        begun.spool.finish()
        self._bodies.adopt(body_name(begun.envelope), begun.spool.path)
        self._bodies.sync()

    def kept(self, received: Envelope) -> bool:
        """Whether the update is a body already."""
        return self._bodies.has(body_name(received))

    def kept_envelope(self, received: Envelope) -> Envelope:
        """What a body was begun with; it is durable on return."""
        self._bodies.sync()
        file = self._bodies.open(body_name(received))
        try:
            return read_envelope(file)[0]
        finally:
            file.close()

    def remove(self, path: Path) -> None:
        self._files.remove(path)
