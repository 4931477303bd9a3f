"""What a state directory holds: its log, and the state that the log tells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from broker.journal import Entry, Journal, JournalError
from broker.journal_open import begun
from broker.journal_segments import SEGMENT_BYTES
from broker.ports import Files
from coordinator.apply import apply
from coordinator.entries import Logged, Turned, decode_entry
from coordinator.facts import AnyFact
from coordinator.image import Recovered
from coordinator.snapshots import Snapshot, Snapshots
from coordinator.state import State

FOLDER: Final = "journal"

log: Final = logging.getLogger(__name__)


def recover(journal: Journal, base: Snapshot | None = None) -> Recovered:
    """Apply every recorded fact behind ``base`` (which is changed), in order. Decides nothing anew."""
    after = base.mark.index if base else 0
    return follow(base.recovered if base else Recovered(State()), journal.entries(after))


def follow(recovered: Recovered, logged_entries: Iterable[Entry]) -> Recovered:
    """Apply the facts of these entries to what was recovered so far, which is changed and returned."""
    for logged in logged_entries:
        follow_entry(recovered, decode_entry(logged.data))
    return recovered


def follow_entry(
    recovered: Recovered, entry: Logged, look: Callable[[AnyFact, Turned], None] | None = None
) -> None:
    """`follow`, of one entry; ``look`` sees each fact before it is applied."""
    recovered.run_s = max(recovered.run_s, entry.at.run_s)
    if isinstance(entry, Turned):
        recovered.turns += 1
        for fact in entry.facts:
            if look is not None:
                look(fact, entry)
            apply(recovered.state, fact, entry.at.run_s)


def open_recovered(
    files: Files, directory: Path, federation: bytes, *, read_only: bool = False
) -> tuple[Journal, Recovered]:
    """The journal of a state directory and what it says, from the newest snapshot on that agrees with it.

    Raises `broker.journal.JournalError`.
    """
    while True:
        begin = begun(files, directory / FOLDER)
        try:
            return _open_recovered(files, directory, federation, read_only=read_only)
        except (JournalError, FileNotFoundError):
            if begun(files, directory / FOLDER) == begin:
                raise
            # It was pruned just now: the base that it has since came after our look at the snapshots.


def _open_recovered(
    files: Files, directory: Path, federation: bytes, *, read_only: bool
) -> tuple[Journal, Recovered]:
    snapshots = Snapshots(files, directory, federation).read()
    marks = [snapshot.mark for snapshot in snapshots]
    journal = Journal.open(
        files,
        directory / FOLDER,
        federation,
        read_only=read_only,
        marks=marks,
        segment_bytes=SEGMENT_BYTES,
    )
    try:
        base = None
        for snapshot in snapshots:
            if snapshot.mark == journal.since:
                base = snapshot
                break
            at = f"entry {snapshot.mark.index}, of {journal.count}"
            log.warning(
                "the snapshot of %s is passed over: the journal has another history (%s)", directory, at
            )
        _require_base(directory, journal, base)
        return journal, recover(journal, base)
    except BaseException:
        journal.close()
        raise


def open_whole(files: Files, directory: Path, federation: bytes) -> tuple[Journal, Snapshot | None]:
    """All of the journal that is there, checked, for reading; and what it follows on, if it was pruned.

    Raises `broker.journal.JournalError`.
    """
    journal = Journal.open(files, directory / FOLDER, federation, read_only=True)
    try:
        base = Snapshots(files, directory, federation).base() if journal.before.index else None
        _require_base(directory, journal, base)
    except BaseException:
        journal.close()
        raise
    return journal, base


def _require_base(directory: Path, journal: Journal, base: Snapshot | None) -> None:
    """Raises `JournalError` if entries were pruned that ``base`` does not stand for."""
    before = journal.before.index
    if before and (base is None or base.mark.index < before):
        raise JournalError(
            f"journal {journal.path.parent}: begins with entry {before + 1}, and no snapshot holds the state "
            f"before it; restore {directory} from a backup"
        )
