"""Snapshots shorten recovery and change nothing: what they give is what the whole log gives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker.journal import Journal, JournalDamaged, Mark
from broker.journal_file import HEADER_BYTES
from coordinator import ledger
from coordinator import snapshots as module
from coordinator.entries import Turned, decode_entry
from coordinator.facts import VersionCommitted
from coordinator.image import Recovered, encode_image
from coordinator.keystore import load_identity
from coordinator.recovery import FOLDER, open_recovered, recover
from coordinator.snapshots import Snapshot, Snapshots
from schemas import events as e
from tests.coordinator.drive import Drive, job_spec
from tests.sim.federation import Outcome
from tests.sim.federation import run as play
from tests.sim.journals import FEDERATION, committing
from tests.sim.machine import SimFiles, sim_ports
from tests.sim.virtual_loop import run
from tests.standin import federation, spec

HOME = Path("/state")
SEGMENT = HEADER_BYTES + 1_500


def committed(rounds: int = 3) -> list[bytes]:
    """The log of a job, with a round of another open in the middle, as entries."""
    drive = Drive()
    drive.enrol(*"abc")
    drive.submit(job_spec("one", rounds=rounds))
    drive.submit(job_spec("other", rounds=2))
    drive.settle()
    drive.update("a", "other")
    for _ in range(rounds):
        for device in drive.asked("one"):
            drive.tick(1.0)
            drive.update(device, "one")
        drive.settle()
    return drive.log


LOG = committed()


def is_commit(data: bytes) -> bool:
    entry = decode_entry(data)
    return isinstance(entry, Turned) and any(isinstance(fact, VersionCommitted) for fact in entry.facts)


def recorded(log: list[bytes] = LOG) -> tuple[SimFiles, list[Mark]]:
    """A state directory with this log, in several segments, and a snapshot at each commit."""
    files = SimFiles()
    journal = Journal.open(files, HOME / FOLDER, FEDERATION, segment_bytes=SEGMENT)
    snapshots = Snapshots(files, HOME, FEDERATION)
    marks = []

    async def work() -> None:
        for data in log:
            marks.append(await journal.append(data))
            if is_commit(data):
                snapshots.put(marks[-1], encode_image(recover(journal)))

    committing(journal, work)
    journal.close()
    return files, marks


def opened(files: SimFiles) -> tuple[Mark | None, Recovered]:
    journal, recovered = open_recovered(files, HOME, FEDERATION, read_only=True)
    journal.close()
    return journal.since, recovered


def wholly(files: SimFiles, directory: Path = HOME, federation: bytes = FEDERATION) -> Recovered:
    """From all facts, without a snapshot."""
    journal = Journal.open(files, directory / FOLDER, federation, read_only=True)
    try:
        return recover(journal)
    finally:
        journal.close()


def names(files: SimFiles) -> list[str]:
    return files.names(HOME / module.FOLDER)


def change(files: SimFiles, name: str, how: Callable[[bytearray], None]) -> None:
    path = HOME / module.FOLDER / name
    data = bytearray(files.read(path))
    how(data)
    file = files.open(path)
    file.truncate(0)
    file.append(bytes(data))


def test_recovery_from_a_snapshot_equals_recovery_from_all_facts_and_the_last_two_are_kept() -> None:
    files, _ = recorded()
    commits = [index for index, data in enumerate(LOG, 1) if is_commit(data)]
    assert names(files) == [f"{index:012d}.fbs" for index in commits[-2:]]
    since, recovered = opened(files)
    assert since is not None
    assert since.index == commits[-1]
    assert recovered == wholly(files)
    assert encode_image(recovered) == encode_image(wholly(files)), "in the same order, too"


def test_every_snapshot_plus_the_facts_behind_it_gives_the_whole_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "KEPT", 1_000)
    for seed in (3, 4):
        outcome = play(seed)
        compare(outcome)


def test_a_snapshot_is_made_when_the_log_has_grown_enough_to_be_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "KEPT", 1_000)
    monkeypatch.setattr(ledger, "SNAPSHOT_PARTS", 0)  # never enough, but for the first

    async def commit_three() -> None:
        async with federation(HOME, ports, 10) as fed:
            device = await fed.device("press-07")
            await fed.command("submit", spec=spec(rounds=2))
            for _ in range(2):
                await device.answer(await device.next(e.TrainingRequest), np.zeros(10, np.float32))
            await fed.until(lambda: len(fed.job("job").versions) == 3)
            await fed.until(lambda: bool(ports.files.names(HOME / module.FOLDER)))

    ports = sim_ports()
    run(commit_three)
    assert len(ports.files.names(HOME / module.FOLDER)) == 1


def compare(outcome: Outcome) -> None:
    files, directory = outcome.coordinator.files, outcome.directory
    federation = load_identity(files, directory).federation
    journal = Journal.open(files, directory / FOLDER, federation, read_only=True)
    entries = list(journal.entries())
    commits = [entry.index for entry in entries if is_commit(entry.data)]
    whole = encode_image(recover(journal))
    found = Snapshots(files, directory, federation).read()
    assert len(found) >= 3
    for snapshot in found:
        assert snapshot.mark.index in commits
        assert snapshot.mark.head == entries[snapshot.mark.index - 1].head
        assert encode_image(recover(journal, snapshot)) == whole


def test_a_coordinator_that_is_killed_at_any_time_never_leaves_a_snapshot_ahead_of_its_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        for seed in range(6):
            outcome = play(seed)
            files, directory = outcome.coordinator.files, outcome.directory
            federation = load_identity(files, directory).federation
            assert outcome.crashes["coordinator"]
            journal, recovered = open_recovered(files, directory, federation, read_only=True)
            assert journal.since is not None
            assert encode_image(recovered) == encode_image(wholly(files, directory, federation))
    assert not [record for record in caplog.records if "passed over" in record.message]


@pytest.mark.parametrize("position", [0, 5, 20, 30, 40, 70, 500, -40, -1])
def test_a_damaged_snapshot_is_passed_over_for_the_one_before(
    position: int, caplog: pytest.LogCaptureFixture
) -> None:
    files, _ = recorded()
    older, newer = names(files)

    def flip(data: bytearray) -> None:
        data[position] ^= 1

    change(files, newer, flip)
    since, recovered = opened(files)
    assert since is not None
    assert f"{since.index:012d}.fbs" == older
    assert recovered == wholly(files)
    assert f"{newer} is passed over: it is damaged" in caplog.text
    change(files, older, lambda data: data.__delitem__(slice(position, None)))
    since, recovered = opened(files)
    assert since is None
    assert recovered == wholly(files)


def test_a_snapshot_of_another_history_or_newer_than_the_log_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    files, marks = recorded()
    folder = Snapshots(files, HOME, FEDERATION)
    image = encode_image(Recovered(wholly(files).state, run_s=1e9))
    folder.put(Mark(marks[-1].index, marks[-2].head), image)
    folder.put(Mark(marks[-1].index + 1, marks[-1].head), image)
    since, recovered = opened(files)
    assert since is None
    assert recovered == wholly(files)
    assert caplog.text.count("another history") == 2


def test_snapshots_that_are_ahead_of_the_log_give_way_to_its_own() -> None:
    files, marks = recorded()
    folder, image = Snapshots(files, HOME, FEDERATION), encode_image(wholly(files))
    for ahead in (1, 2):
        folder.put(Mark(marks[-1].index + ahead, bytes(32)), image)
    folder.put(marks[-1], image)
    assert names(files) == [f"{marks[-1].index:012d}.fbs"]
    assert opened(files)[0] == marks[-1]


def test_a_snapshot_of_another_federation_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    files, marks = recorded()
    image = encode_image(Recovered(wholly(files).state, run_s=1e9))
    Snapshots(files, HOME, bytes(16)).put(marks[-1], image)
    since, recovered = opened(files)
    assert since is not None
    assert recovered == wholly(files)
    assert "of another federation" in caplog.text


def test_what_lies_before_the_snapshots_segment_is_not_read() -> None:
    files, _ = recorded()
    path = HOME / FOLDER / "00000001.fbj"
    file = files.open(path)
    file.write_at(file.size() - 1, bytes([file.read_at(file.size() - 1, 1)[0] ^ 1]))
    assert len(files.names(HOME / FOLDER)) > 3
    since, recovered = opened(files)
    assert since is not None
    assert sorted(recovered.state.jobs) == ["one", "other"]
    with pytest.raises(JournalDamaged, match=r"00000001\.fbj"):
        wholly(files)


def test_drafts_that_a_crash_left_are_removed_with_the_next_snapshot() -> None:
    files, marks = recorded()
    files.open(HOME / module.FOLDER / "000000000001.fbs.new", create=True).close()
    Snapshots(files, HOME, FEDERATION).put(marks[-1], encode_image(wholly(files)))
    assert names(files)[-1] == f"{marks[-1].index:012d}.fbs"
    assert len(names(files)) == 2


def test_the_requests_of_a_round_are_the_jobs_own_after_recovery() -> None:
    files, _ = recorded()
    _, recovered = opened(files)
    job = recovered.state.jobs["other"]
    assert job.round is not None
    assert job.round.order
    for request in (*job.round.requests, *job.round.order):
        assert any(request is known for known in job.requests.values())


def test_snapshots_are_read_whole_or_not_at_all_when_a_coordinator_removes_them_meanwhile() -> None:
    files, marks = recorded()

    class Vanishing(SimFiles):
        """What is listed is gone when it is read."""

        def names(self, path: Path) -> list[str]:
            return files.names(path)

    assert Snapshots(Vanishing(), HOME, FEDERATION).read() == []
    found: list[Snapshot] = Snapshots(files, HOME, FEDERATION).read()
    assert all(snapshot.mark in marks for snapshot in found)
