"""Verification finds what checksums can't: messages that their devices did not sign; and whatever was changed
in the updates of a pruned log, also when their signer's key went with its beginning."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
from msgspec.structs import replace

from broker.bodies import Bodies
from coordinator import verify as module
from coordinator.entries import Logged, Message, Turned
from coordinator.prune import prune
from coordinator.stored import read_envelope
from coordinator.verify import Damage, verify
from tests.coordinator.pruning import HOME, Disk, recorded
from tests.replay.doctored import Entries, rewrite


def damage_of(disk: Disk) -> list[Damage]:
    return verify(disk.files, HOME, disk.federation).damage


def rewritten(disk: Disk, change: Callable[[Message], Message], *, inline: bool) -> int:
    """Write the log anew, its newest message changed (``inline``: one that has its body in the log), with
    checksums, chain and receipts that are right; the index of the changed entry."""
    changed: list[int] = []

    def newest(entries: Entries) -> None:
        at = max(at for at, entry in entries.items() if has_message(entry, inline=inline))
        turn = entries[at]
        assert isinstance(turn, Turned)
        assert isinstance(turn.input, Message)
        entries[at] = replace(turn, input=change(turn.input))
        changed.append(at)

    rewrite(disk.files, HOME, newest, receipts=True)
    return changed[0]


def has_message(turn: Logged, *, inline: bool) -> bool:
    return isinstance(turn, Turned) and isinstance(turn.input, Message) and bool(turn.input.body) is inline


def flipped(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "inline", "cause"),
    [
        (lambda one: replace(one, signature=flipped(one.signature)), True, "signature .* does not hold"),
        (lambda one: replace(one, signature=flipped(one.signature)), False, "signature .* does not hold"),
        (lambda one: replace(one, body=flipped(one.body)), True, "body is not the one that was signed"),
        (lambda one: replace(one, device="press-09"), True, "message of press-09 was signed by press-0[78]"),
    ],
    ids=["signature", "signature-of-an-update", "body", "device"],
)
def test_a_message_that_its_device_did_not_sign_so_is_found_though_all_checksums_are_right(
    change: Callable[[Message], Message], inline: bool, cause: str
) -> None:
    disk = recorded()
    index = rewritten(disk, change, inline=inline)
    damage = damage_of(disk)
    assert [one.file.name for one in damage] == ["00000001.fbj"]
    assert re.search(rf"entry {index} \(.*{cause}", damage[0].what), damage


def test_a_log_that_is_written_anew_unchanged_is_whole() -> None:
    disk = recorded()
    rewritten(disk, lambda one: one, inline=True)
    assert damage_of(disk) == []


@cache
def _pruned() -> Disk:
    disk = recorded()
    assert prune(disk.ports, HOME).bodies > 0
    return disk


@pytest.fixture
def pruned() -> Disk:
    return deepcopy(_pruned())


def test_an_update_of_a_key_that_was_pruned_is_compared_with_its_entry(
    pruned: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the device joined anew: its key of then is not in the state any more."""
    monkeypatch.setattr(module, "key_id", lambda key: b"")
    flip_all(pruned)


def test_a_flipped_byte_in_an_update_is_found_in_a_pruned_log(pruned: Disk) -> None:
    flip_all(pruned)


def flip_all(disk: Disk) -> None:
    """Each byte of the newest update."""
    name = max(Bodies(disk.files, HOME / "bodies").names())
    path = HOME / "bodies" / name
    file = disk.files.open(path)
    envelope, end = read_envelope(file)
    assert end == file.size()
    assert envelope.signature in file.read_at(0, end)
    assert damage_of(disk) == []
    for at in range(0, end, 3):
        whole = file.read_at(at, 1)
        file.write_at(at, flipped(whole))
        assert path in [one.file for one in damage_of(disk)], at
        file.write_at(at, whole)
