"""Doctored logs: somebody who knows the format changes entries, and makes checksums and chain right again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from broker.journal import Journal
from broker.journal_file import Header, encode_frame, encode_header, genesis
from broker.ports import Files
from coordinator.entries import Logged, Sent, Turned, decode_entry, encode_entry
from coordinator.facts import Fact
from coordinator.keystore import load_identity
from coordinator.recovery import FOLDER
from schemas.events import Receipt, decode_from_coordinator, encode_event

Entries = dict[int, Logged]
"""By index; the entries of a frame follow each other."""
F = TypeVar("F", bound=Fact)


def read(files: Files, home: Path) -> tuple[Entries, list[list[int]]]:
    """The entries, and which of them are a frame together."""
    journal = Journal.open(files, home / FOLDER, load_identity(files, home).federation, read_only=True)
    found = list(journal.entries())
    journal.close()
    frames = [[one.index for one in frame] for _, frame in groupby(found, key=lambda one: one.head)]
    return {one.index: decode_entry(one.data) for one in found}, frames


def rewrite(
    files: Files, home: Path, change: Callable[[Entries], object], *, receipts: bool, empty_behind: int = 0
) -> dict[int, int]:
    """Write the log anew, as one segment; with ``receipts``, also what devices were told of heads. A frame
    without entries follows that of the entry ``empty_behind``.

    Where each entry is now; those that ``change`` removed are not.
    """
    entries, frames = read(files, home)
    change(entries)
    federation = load_identity(files, home).federation
    for path in [home / FOLDER / name for name in files.names(home / FOLDER)]:
        files.remove(path)
    if files.exists(home / "snapshots"):
        files.remove(home / "snapshots")  # they are of the other history
    header = Header(1, 1, genesis(federation))
    parts, head = [encode_header(federation, header)], header.head
    placed: dict[int, int] = {}
    heads: dict[int, bytes] = {}
    for frame in frames:
        left = [index for index in frame if index in entries]
        if not left:
            continue
        told = [_retold(entries[one], placed, heads) if receipts else entries[one] for one in left]
        data, head = encode_frame(head, [encode_entry(one) for one in told])
        parts.append(bytes(data))
        if empty_behind in left:
            data, head = encode_frame(head, [])
            parts.append(bytes(data))
        for index in left:
            placed[index] = len(placed) + 1
            heads[index] = head
    files.open(home / FOLDER / "00000001.fbj", create=True).append(b"".join(parts))
    return placed


def _retold(entry: Logged, placed: dict[int, int], heads: dict[int, bytes]) -> Logged:
    event = decode_from_coordinator(entry.inner) if isinstance(entry, Sent) else None
    if not isinstance(entry, Sent) or not isinstance(event, Receipt):
        return entry
    at = max(index for index in placed if index <= event.index)
    return replace(entry, inner=encode_event(replace(event, index=placed[at], head=heads[at])))


def find(entries: Entries, kind: type[F], is_it: Callable[[F], bool] = lambda fact: True) -> list[int]:
    """Where the facts of this kind are."""
    return [
        index
        for index, entry in entries.items()
        if isinstance(entry, Turned) and any(isinstance(one, kind) and is_it(one) for one in entry.facts)
    ]


def fact(entries: Entries, index: int, kind: type[F]) -> F:
    """The one of this kind in an entry."""
    entry = entries[index]
    assert isinstance(entry, Turned)
    (found,) = [one for one in entry.facts if isinstance(one, kind)]
    return found


def alter(entries: Entries, index: int, kind: type[Fact], *, told: bool = False, **fields: object) -> None:
    """Other fields in the fact of this kind; and, if ``told``, in what came in."""
    entry = entries[index]
    assert isinstance(entry, Turned)
    facts = [replace(one, **fields) if isinstance(one, kind) else one for one in entry.facts]
    came = replace(entry.input, **fields) if told else entry.input
    entries[index] = replace(entry, facts=facts, input=came)
