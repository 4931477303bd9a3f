"""``journal export --rekey``: a whole state directory that tells the same history, of nobody in particular.

Every message is opened and sealed again, and every signature made again, by keys that are drawn here; names
become ``device-1``, ``job-1``, …. What the models are made of stays, to the bit, so a replay computes equal
digests. What a coordinator makes anew when it is needed is left out. docs/journal.md says what else stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from msgspec.structs import replace as with_fields

from broker.bodies import Bodies
from broker.journal import Journal, Mark
from broker.journal_file import FRAME_BYTES_MAX
from broker.journal_open import open_segments
from broker.journal_segments import SEGMENT_BYTES
from broker.ports import Ports, write_atomic
from coordinator.agreement import after_nothing
from coordinator.config import Config
from coordinator.entries import decode_entry, encode_entry
from coordinator.image import Recovered, encode_image
from coordinator.keystore import Identity, KeyStore, load_identity
from coordinator.recovery import FOLDER, follow_entry
from coordinator.rekey import ExportRefused
from coordinator.rekey.devices import put_devices
from coordinator.rekey.draft import DraftFiles
from coordinator.rekey.messages import Messages
from coordinator.rekey.names import Names
from coordinator.rekey.parties import Parties
from coordinator.rekey.survey import Survey, survey
from coordinator.rekey.translate import Translator
from coordinator.rekey.updates import Content, Updates
from coordinator.setup import init
from coordinator.snapshots import Snapshots
from coordinator.state import State
from coordinator.store import Altered, Store
from coordinator.verify import verify
from schemas.ids import transfer_id

SEQUENCE = "seq"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds."""

    federation: bytes
    entries: int
    devices: int
    updates: int


def export(
    ports: Ports,
    directory: Path,
    target: Path,
    config: Config,
    content: Content = Content.KEEP,
    *,
    durable: int | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> Exported:
    """Make ``target``, whole or not at all, with the settings ``config``. ``durable`` as `coordinator.verify`
    takes it: a coordinator may serve meanwhile. ``segment_bytes`` as of `broker.journal.Journal.open`.

    Raises `ExportRefused`, `coordinator.store.Altered`, `coordinator.keystore.KeysMissing`,
    `broker.journal.JournalError`, OSError.
    """
    files, draft = ports.files, target.with_name(f"{target.name}.new")
    for path in (target, draft):
        if files.exists(path):
            raise ExportRefused(f"{path} exists already; name another place, or move it away")
    identity = load_identity(files, directory)
    damage = verify(files, directory, identity.federation, durable).damage
    if damage:
        raise ExportRefused(f"{damage[0]}; nothing is exported of what is damaged: restore {directory} first")
    journal = Journal.open(files, directory / FOLDER, identity.federation, read_only=True)
    try:
        if journal.before.index:
            raise ExportRefused(
                f"{directory} begins with entry {journal.before.index + 1}: what was pruned is needed for an "
                f"export; export before pruning, or from a backup"
            )
        drafts = DraftFiles(files)
        retelling = _Retelling(replace(ports, files=drafts), directory, draft, identity, config, content)
        exported = retelling.tell(journal, segment_bytes)
        _require_whole(ports, draft, exported)
        drafts.settle()
        files.rename(draft, target)
        files.sync_dir(target.parent)
    except BaseException:
        with suppress(OSError):
            files.remove(draft)
        raise
    finally:
        journal.close()
    return exported


def _require_whole(ports: Ports, draft: Path, exported: Exported) -> None:
    found = verify(ports.files, draft, exported.federation)
    if found.damage or found.entries != exported.entries:
        raise RuntimeError(
            f"the export is not whole ({found.entries} entries; {found.damage[:1]}): report this"
        )


class _Retelling:
    """One export on its way."""

    def __init__(
        self, ports: Ports, directory: Path, draft: Path, source: Identity, config: Config, content: Content
    ) -> None:
        self._ports, self._files, self._config = ports, ports.files, config
        self._directory, self._draft = directory, draft
        self._ours = ours = init(ports, draft, config)
        self._was_keys = KeyStore(ports.files, directory, ports.entropy)
        self._keys = KeyStore(ports.files, draft, ports.entropy)
        self._was = Store(ports.files, directory, source, self._was_keys)
        self._store = Store(ports.files, draft, ours, self._keys)
        self._names = Names()
        self._parties = Parties(ports.entropy, source, ours)
        self._to = Translator(self._names, self._parties, (source, self._was), (ours, self._store))
        self._bodies = Bodies(ports.files, draft / "bodies")
        federations = source.federation, ours.federation
        was = Bodies(ports.files, directory / "bodies")
        self._updates = Updates(was, self._bodies, self._to, federations, content)
        self._messages = Messages(self._to, source, ours)
        self._told = Recovered(State())

    def tell(self, journal: Journal, segment_bytes: int) -> Exported:
        """Everything that `load_identity` and a coordinator look for."""
        found = survey(journal.entries())
        for device in found.joined:
            self._names.of("device", device)
        self._put_models(found)
        self._put_updates(found)
        self._put_log(journal, found.committed, segment_bytes)
        self._put_request_keys(found)
        put_devices(
            self._ports, self._draft, self._config, self._ours, self._messages.lives, self._told.state
        )
        if self._files.exists(self._directory / SEQUENCE):
            write_atomic(self._files, self._draft / SEQUENCE, self._files.read(self._directory / SEQUENCE))
        return Exported(
            self._ours.federation, journal.count, len(self._told.state.devices), len(found.updates)
        )

    def _put_models(self, found: Survey) -> None:
        for job, digest in found.models:
            was, told = self._was.layout(job), self._to.job(job)
            if was.digest() not in self._to.layouts:
                layout = with_fields(was, job=told)
                self._store.put_layout(layout)
                self._to.layouts[was.digest()] = layout.digest()
            self._store.put_model(told, [self._was.model(job, digest)])
        for (job, version), digest in found.moments.items():
            moments = np.frombuffer(self._files.read(self._was.moments_path(job, version)), "<f4")
            if self._store.put_moments(self._to.job(job), version, moments[np.newaxis]) != digest:
                raise Altered(self._was.moments_path(job, version))

    def _put_updates(self, found: Survey) -> None:
        for recipient, digest in found.updates:
            key = self._was_keys.request_key(*found.rounds[recipient], recipient)
            sealed = self._updates.seal(recipient, digest, key)
            self._messages.updates[recipient, digest] = sealed
            self._to.updates[digest] = sealed.seal.body
            self._to.transfers[transfer_id(digest)] = transfer_id(sealed.seal.body)
        for request, stored in found.received.items():
            self._to.updates[request] = self._messages.updates[stored].seal.body
        self._bodies.sync()

    def _put_request_keys(self, found: Survey) -> None:
        """Those that were not destroyed."""
        of_round: dict[tuple[str, int], list[bytes]] = {}
        for recipient, round_ in found.rounds.items():
            of_round.setdefault(round_, []).append(recipient)
        for (job, number), recipients in of_round.items():
            left = [one for one in recipients if self._was_keys.request_key(job, number, one)]
            self._keys.put_request_keys(self._to.job(job), number, [self._parties.box(one) for one in left])

    def _put_log(self, journal: Journal, committed: int, segment_bytes: int) -> None:
        """Frame by frame: what a receipt says of the journal must be true here, too."""
        segments, _ = open_segments(
            self._files,
            self._draft / FOLDER,
            self._ours.federation,
            read_only=False,
            marks=(),
            segment_bytes=segment_bytes,
        )
        snapshots = Snapshots(self._files, self._draft, self._ours.federation)
        try:
            for head, logged in groupby(journal.entries(), lambda entry: entry.head):
                image = b""
                told = []
                for entry in logged:
                    turn = self._messages.entry(decode_entry(entry.data))
                    told.append(encode_entry(turn))
                    follow_entry(self._told, turn)
                    if entry.index == committed:
                        image = encode_image(self._told)
                for frame in _frames(told):
                    segments.advance(segments.write(frame))
                self._to.heads[head] = self._to.heads[after_nothing(head)] = segments.tail.head
                if image:
                    snapshots.put(Mark(committed, segments.tail.head), image)
        finally:
            segments.close()


def _frames(entries: Iterable[bytes]) -> Iterator[list[bytes]]:
    """One, as a rule: names may have become longer than there is room for in it."""
    frame: list[bytes] = []
    for data in entries:
        if frame and sum(map(len, frame)) + len(data) > FRAME_BYTES_MAX:
            yield frame
            frame = []
        frame.append(data)
    yield frame
