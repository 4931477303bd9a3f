"""A doctored log is found by `journal verify` and by `replay`, and the first record that is wrong is named,
whether only the bytes were changed or checksums, chain and receipts were made right again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from broker.system import system_ports
from coordinator.cli.main import main
from coordinator.entries import Logged, Message, Sent, Turned
from coordinator.facts import UpdateJudged, UpdateReceived, VersionCommitted
from coordinator.recovery import FOLDER
from coordinator.stored import stored_name
from coordinator.testing import RECORDING, unpack
from schemas.codec import unpack as decoded
from schemas.envelope import Header
from schemas.events import Receipt, Verdict, decode_from_coordinator
from tests.replay.doctored import Entries, alter, fact, find, read, rewrite
from tests.replay.doctors import (
    DOCTORS,
    JOB,
    REMOVED,
    Doctor,
    other_weight_as_checked,
    round_of,
    without_update,
)

FILES: Final = system_ports().files
Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """As this fedbus writes it: entries of older ones lack fields, and written anew have other heads."""
    made = unpack(RECORDING, tmp_path / "home")
    rewrite(FILES, made, lambda entries: None, receipts=True)
    return made


def asked(capsys: Capsys, *arguments: str) -> str:
    """The error that a command ends with; empty if it finds nothing."""
    capsys.readouterr()
    status = main(list(arguments))
    error = capsys.readouterr().err
    assert status == bool(error)
    return error


def verified(capsys: Capsys, home: Path) -> str:
    return asked(capsys, "journal", "verify", "--dir", str(home))


def replayed(capsys: Capsys, home: Path) -> str:
    return asked(capsys, "replay", str(home))


@pytest.mark.parametrize("receipts", [False, True], ids=["chain", "chain-and-receipts"])
def test_a_log_that_is_written_anew_with_all_its_entries_is_whole(
    home: Path, capsys: Capsys, *, receipts: bool
) -> None:
    rewrite(FILES, home, lambda entries: None, receipts=receipts)
    assert verified(capsys, home) == ""
    assert replayed(capsys, home) == ""


def test_a_receipt_that_names_the_head_of_a_frame_without_entries_is_true(
    home: Path, capsys: Capsys, tmp_path: Path
) -> None:
    """As the first coordinators wrote them; an export can be made of it, too."""
    entries, _ = read(FILES, home)
    _, (received, *_), _ = round_of(entries)
    rewrite(FILES, home, lambda entries: None, receipts=True, empty_behind=received)
    copy = tmp_path / "copy"
    assert verified(capsys, home) == replayed(capsys, home) == ""
    assert main(["journal", "export", "--rekey", str(copy), "--dir", str(home)]) == 0
    assert verified(capsys, copy) == replayed(capsys, copy) == ""


@pytest.mark.parametrize("receipts", [False, True], ids=["chain", "chain-and-receipts"])
@pytest.mark.parametrize("doctor", DOCTORS, ids=lambda one: one.__name__)
def test_a_doctored_log_is_found_and_the_first_record_that_is_wrong_is_named(
    home: Path, capsys: Capsys, doctor: Doctor, *, receipts: bool
) -> None:
    changed: list[int] = []
    placed = rewrite(FILES, home, lambda entries: changed.extend(doctor(entries)), receipts=receipts)
    entries, _ = read(FILES, home)
    verify, replay = verified(capsys, home), replayed(capsys, home)
    if doctor not in REMOVED:  # itself is named
        assert f"wrong entry {placed[changed[0]]} (" in verify.split("; ")[0]
        assert f"log entry {placed[changed[0]]}" in replay
        return
    # What is not there has no number; named is the first record that needs it, in the round that it is of.
    named = int(verify.partition("wrong entry ")[2].partition(" ")[0])
    version = min(at for at in find(entries, VersionCommitted) if at >= changed[0])
    assert changed[0] <= named <= version
    assert f"log entry {named} is not what was recorded: " in replay


def test_nothing_is_asked_of_a_round_whose_log_is_doctored(home: Path, capsys: Capsys) -> None:
    placed = rewrite(FILES, home, other_weight_as_checked, receipts=True)
    assert placed
    entries, _ = read(FILES, home)
    at, _, _ = round_of(entries)
    round_ = str(fact(entries, at, VersionCommitted).round)
    error = asked(capsys, "replay", str(home), "--job", JOB, "--blame", "--round", round_)
    assert f"log entry {at} is wrong (version " in error


def test_an_update_whose_file_has_the_other_ones_bytes_is_named(home: Path, capsys: Capsys) -> None:
    entries, _ = read(FILES, home)
    at, received, _ = round_of(entries)
    a, b = (body_of(entries, one, home) for one in received[:2])
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    for path in (a, b):
        assert f"{path}: damaged at byte 0: wrong name" in verified(capsys, home)
    error = replayed(capsys, home)
    assert f"(log entry {at}) is not what was recorded: device " in error
    for one in received[:2]:
        assert f"device {fact(entries, one, UpdateReceived).device}, request " in error


def body_of(entries: Entries, received: int, home: Path) -> Path:
    message = entries[received]
    assert isinstance(message, Turned)
    assert isinstance(message.input, Message)
    header = decoded(message.input.header, Header)
    return home / "bodies" / stored_name(header.clear.recipient, header.seal.body)


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_a_frame_that_was_only_cut_out_or_changed_is_named_with_its_place(
    home: Path, capsys: Capsys, how: str
) -> None:
    rewrite(FILES, home, lambda entries: None, receipts=False)
    path = home / FOLDER / "00000001.fbj"
    whole = path.read_bytes()
    entries, frames = read(FILES, home)
    _, (received, *_), _ = round_of(entries)
    begin, end = place(whole, next(n for n, frame in enumerate(frames) if received in frame))
    cut = whole[:begin] + whole[end:]
    path.write_bytes(cut if how == "removed" else whole[: end - 9] + b"x" + whole[end - 8 :])
    for error in (verified(capsys, home), replayed(capsys, home)):
        assert f"{path}: damaged at byte {begin}: wrong " in error


def place(segment: bytes, number: int) -> tuple[int, int]:
    """Where a frame begins and ends."""
    begin = 72
    for _ in range(number):
        begin += 44 + int.from_bytes(segment[begin : begin + 4], "little")
    return begin, begin + 44 + int.from_bytes(segment[begin : begin + 4], "little")


def test_a_norm_that_no_update_has_is_found_by_the_replay(home: Path, capsys: Capsys) -> None:
    named: list[int] = []

    def other_norm(entries: Entries) -> None:
        _, _, (at, *_) = round_of(entries)
        alter(entries, at, UpdateJudged, told=True, norm=0.125)
        named.append(at)

    rewrite(FILES, home, other_norm, receipts=True)
    assert f"its norm or samples are not what log entry {named[0]} says" in replayed(capsys, home)


def told_of(entry: Logged) -> tuple[str, str, int] | None:
    """The device and the request that a receipt or verdict is about."""
    event = decode_from_coordinator(entry.inner) if isinstance(entry, Sent) else None
    if not isinstance(entry, Sent) or not isinstance(event, Receipt | Verdict):
        return None
    return entry.device, event.job, event.request


def test_an_update_that_left_no_trace_is_found_by_the_replay(home: Path, capsys: Capsys) -> None:
    """Its reception and verdict, and what its device was told of them; the version counts without it."""
    named: list[int] = []

    def without_trace(entries: Entries) -> None:
        at, _, (judged, *_) = round_of(entries)
        update = fact(entries, judged, UpdateJudged)
        samples = fact(entries, at, VersionCommitted).samples - update.samples
        without_update(entries)
        alter(entries, at, VersionCommitted, told=True, samples=samples)
        for index in [
            one for one in entries if told_of(entries[one]) == (update.device, JOB, update.request)
        ]:
            del entries[index]
        named.append(at)

    placed = rewrite(FILES, home, without_trace, receipts=True)
    assert f"(log entry {placed[named[0]]}) is not what was recorded: the bits differ" in replayed(
        capsys, home
    )
