"""A tap beside a federation: what it records is what passed, byte for byte, and nobody notices."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from broker.bodies import Bodies
from broker.journal import JournalStopped
from broker.ports import File, Files, LockHeld
from broker.service import innermost
from broker.system import system_ports
from coordinator.config import ConfigError
from coordinator.entries import Message, Sent, Turned, decode_entry
from coordinator.inputs import JoinAsked, Moment
from coordinator.stored import read_envelope, stored_name
from coordinator.tap.entries import DOWN, UP, Listening, Passed, entry_of
from coordinator.tap.place import MARK, Known, read_known
from coordinator.tap.read import verify
from coordinator.tap.record import Recorded, recording
from schemas import events as e
from schemas.codec import unpack
from schemas.enrolment import JOIN_MAGIC, WELCOME_MAGIC, open_join
from schemas.envelope import Header, chunk_digests
from tests.coordinator.tapping import PARAMETERS, SESSION, Heard, known, tapped, train
from tests.standin import federation


async def test_a_tap_has_every_message_that_the_coordinator_heard_and_sent(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "tap"
    async with federation(home, system_ports(), PARAMETERS) as fed:
        async with tapped(fed, folder) as tap:
            await train(fed)
        await fed.until(lambda: fed.coordinator.ledger.journal.queued == fed.coordinator.ledger.journal.count)
        entries = [decode_entry(found.data) for found in fed.coordinator.ledger.journal.entries()]
        identity = fed.identity
    heard = Heard(folder, identity.federation)
    up, down = heard.envelopes(UP), {one.header_bytes: one for one in heard.envelopes(DOWN).values()}
    bodies, updates, sent = Bodies(system_ports().files, home / "bodies"), 0, 0
    joins = [
        open_join(data, identity.enrolment)[2] for data in heard.payloads[UP] if data.startswith(JOIN_MAGIC)
    ]
    for entry in entries:
        if isinstance(entry, Sent):
            assert sha256(down[entry.header].body).digest() == unpack(entry.header, Header).seal.body
            sent += 1
        elif isinstance(entry.input, JoinAsked):
            assert entry.input.packed in joins
        elif isinstance(entry.input, Message):
            passed = up[entry.input.signature]
            assert passed.header_bytes == entry.input.header
            if entry.input.body:
                assert passed.body == entry.input.body
                continue
            updates += 1
            file = bodies.open(stored_name(passed.clear.recipient, passed.digest))
            assert read_envelope(file)[0].to_bytes() == passed.to_bytes()
            file.close()
            assert heard.chunks(UP) >= set(chunk_digests(passed))
    assert (updates, sum(data.startswith(WELCOME_MAGIC) for data in heard.payloads[DOWN])) == (4, 2)
    assert sent > 10
    assert tap.recorded.up == len(heard.payloads[UP])
    assert tap.recorded.down == len(heard.payloads[DOWN])
    models = [
        entry for entry in heard.entries if isinstance(entry, Passed) and entry.way == DOWN and entry.same
    ]
    assert len(models) >= 2 * 5, "what goes to both devices alike is stored once"
    own = [entry for entry in heard.entries if isinstance(entry, Turned)]
    assert {entry.behaviour for entry in own} == {0}


async def test_a_gap_is_recorded_and_the_recording_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with federation(tmp_path / "home", system_ports()) as fed:
        async with tapped(fed, tmp_path / "tap") as tap:
            await fed.device("press-07")
            fed.broker.disconnect(SESSION)
            await fed.device("press-08")
            fed.broker.restore(SESSION)
            await fed.until(lambda: tap.recorded.gaps == 1)
            await fed.device("press-09")
        async with tapped(fed, tmp_path / "tap") as tap:
            await fed.device("press-10")
            assert tap.recorded.gaps == 1
        heard = Heard(tmp_path / "tap", fed.identity.federation)
    gaps = [entry.gap_s for entry in heard.entries if isinstance(entry, Listening)]
    assert gaps[0] is None
    assert len(gaps) == 3
    assert all(gap_s is not None and gap_s >= 0 for gap_s in gaps[1:])
    times = [entry.at.run_s for entry in heard.entries]
    assert times == sorted(times), "over all its lives"
    devices = {entry.device for entry in heard.entries if isinstance(entry, Passed)}
    assert devices >= {"press-07", "press-09", "press-10"}


async def test_nothing_waits_for_a_tap_that_is_away(tmp_path: Path) -> None:
    async with federation(tmp_path / "home", system_ports()) as fed:
        async with tapped(fed, tmp_path / "tap"):
            await fed.device("press-07")
        await fed.device("press-08")
        assert fed.broker.queued(SESSION) == 0


class FullDisk:
    """A disk on which the journal finds no room from ``full`` on; half of what is written still arrives."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def open(self, path: Path, **options: Any) -> Any:
        return FullFile(self, self._files.open(path, **options), path)


class FullFile:
    def __init__(self, disk: FullDisk, file: File, path: Path) -> None:
        self._disk, self._file, self._path = disk, file, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def append(self, data: bytes) -> None:
        if self._disk.full:
            self._file.append(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        self._file.append(data)


async def test_a_full_disk_ends_the_recording_clearly_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    disk = FullDisk(system_ports().files)
    folder = tmp_path / "tap"
    async with federation(tmp_path / "home", system_ports()) as fed:
        ports = replace(fed.ports, files=cast("Files", disk))

        counted: list[Recorded] = []

        async def record() -> None:
            async with tapped(fed, folder, ports) as tap:
                counted.append(tap.recorded)
                await fed.device("press-07")
                disk.full = True
                await fed.device("press-08")
                await asyncio.Event().wait()  # the recording ends it

        with pytest.raises(ExceptionGroup) as raised:
            await record()
        error = innermost(raised.value)
        assert isinstance(error, JournalStopped)
        assert "No space left on device" in str(error)
        assert "free space" in str(error)
        found = verify(system_ports().files, folder, known(fed), lambda: False)
        assert found.damage == []
        assert found.messages == counted[0].up + counted[0].down > 0, "what is told is what is there"
        disk.full = False
        async with tapped(fed, folder, ports) as tap:
            assert tap.journal.cut_bytes == 0
            assert tap.recorded.gaps == 1


@pytest.mark.parametrize("name", ["coordinator.toml", "notes.txt", "journal"])
def test_a_folder_that_is_something_else_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    one = Known(federation=bytes(16).hex())
    words = f"holds something else .{name}.; name a new or empty folder"
    with pytest.raises(ConfigError, match=words), recording(system_ports(), tmp_path, one):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_recording_of_another_federation_is_refused(tmp_path: Path) -> None:
    one, other = Known(federation=bytes(16).hex()), Known(federation=bytes(range(16)).hex())
    ports, folder = system_ports(), tmp_path / "tap"
    with recording(ports, folder, one), pytest.raises(LockHeld), recording(ports, folder, one):
        pass
    words = "holds a recording of federation 0000"
    with pytest.raises(ConfigError, match=words), recording(ports, folder, other):
        pass


@pytest.mark.parametrize(
    "text", ["{", '{"federation": "ff"}', '{"federation": "%s", "key_set": "AAAA"}' % ("00" * 16)]
)
def test_a_damaged_mark_is_told_with_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(text)
    with pytest.raises(ConfigError, match=r"tap\.json: damaged \(.*restore it from a backup"):
        read_known(system_ports().files, tmp_path)


def test_what_is_larger_than_any_message_of_ours_is_recorded_by_its_size_and_beginning() -> None:
    payload = bytes(9 << 20)
    entry = entry_of(Moment(0.0, 0.0), f"fedbus/{bytes(16).hex()}/up/press-07", payload)
    assert isinstance(entry, Passed)
    assert (entry.way, entry.device, entry.size, entry.data) == (UP, "press-07", len(payload), bytes(1024))


async def test_a_forged_message_that_passed_is_named_and_is_no_damage(tmp_path: Path) -> None:
    async with federation(tmp_path / "home", system_ports()) as fed:
        good, bad = await fed.device("press-07"), await fed.device("press-08")
        async with tapped(fed, tmp_path / "tap"):
            status = await good.say(e.StateRequest(requests=[], key_set=1))
            await bad.say_bytes(status.to_bytes())  # another's message, on its own topic
            changed = bytearray(status.to_bytes())
            changed[-1] ^= 1
            await good.say_bytes(bytes(changed))
            await good.next(e.StateReply)
        found = verify(system_ports().files, tmp_path / "tap", known(fed), lambda: False)
        blind = verify(
            system_ports().files,
            tmp_path / "tap",
            Known(federation=fed.identity.federation.hex()),
            lambda: False,
        )
    assert (found.damage, found.foreign, found.unchecked) == ([], [3, 4], 0)
    assert found.signed == found.messages - 2
    assert (blind.damage, blind.foreign, blind.unchecked) == ([], [], found.messages)
