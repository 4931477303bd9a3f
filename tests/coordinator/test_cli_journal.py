"""What ``journal`` tells a person and a program of the log, and that it finds whatever was changed."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.system import system_ports
from coordinator.cli.main import main
from coordinator.config import FILE, Config, config_text
from coordinator.keystore import load_identity
from coordinator.verify import verify
from schemas import events as e
from tests.coordinator.serving import answer, served
from tests.standin import federation, spec

Capsys = pytest.CaptureFixture[str]
PARAMETERS = 70_000  # five chunks of the smallest size
FLIPS = 12  # in each file


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory after two rounds: press-07's updates were folded, press-08's are too large."""
    home = tmp_path_factory.mktemp("recorded") / "home"
    asyncio.run(record(home))
    (home / FILE).write_text(config_text(Config(broker="memory:0")))
    return home


async def record(home: Path) -> None:
    async with federation(home, system_ports(), PARAMETERS) as fed:
        good, bad = await fed.device("press-07"), await fed.device("press-08")
        fields: dict[str, Any] = {
            "cohort": 2,
            "min_reports": 1,
            "chunk_bytes": 1 << 16,
            "update_norm_max": 10.0,
        }
        await fed.command("submit", spec=spec(rounds=2, **fields))
        for round_ in (1, 2):
            for device, size in ((bad, 1.0), (good, 0.01)):
                request = await device.next(e.TrainingRequest)
                delta = np.full(PARAMETERS, size, np.float32)
                if round_ == 2 and device is good:
                    await device.say(e.Accept(job="job", request=request.request))
                    sealed, chunks = device.seal(request, *device.update(request, delta), 1 << 16)
                    await device.send_chunks(await device.offer(sealed), chunks)
                else:
                    await device.answer(request, delta)
                await device.next(e.Verdict)
        await good.next(e.JobFinished)  # said once the last version is durable
        await fed.until(lambda: len(list((home / "snapshots").glob("*.fbs"))) == 2)


@pytest.fixture
def home(recorded: Path, tmp_path: Path) -> Path:
    shutil.copytree(recorded, tmp_path / "home", ignore=shutil.ignore_patterns("*.sock"))
    return tmp_path / "home"


def run(capsys: Capsys, home: Path, *arguments: str, status: int = 0) -> str:
    """What a command prints: on standard output, or its error."""
    capsys.readouterr()
    assert main(["journal", *arguments, "--dir", str(home)]) == status
    out, err = capsys.readouterr()
    return err if status else out


def listed(capsys: Capsys, home: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(capsys, home, "ls", "--json", *arguments))
    return found


def test_ls_says_who_said_what_to_whom_about_which_job_and_round(home: Path, capsys: Capsys) -> None:
    lines = listed(capsys, home, "--last", "0")
    assert [line["index"] for line in lines] == list(range(1, len(lines) + 1))
    said = {(line["from"], line["to"], line["what"], line["job"], line["round"]) for line in lines}
    assert said >= {
        ("operator", "coordinator", "invite", "", 0),
        ("press-07", "coordinator", "join-asked", "", 0),
        ("press-07", "coordinator", "device-status", "", 0),
        ("operator", "coordinator", "submit", "job", 0),
        ("coordinator", "press-07", "training-request", "job", 1),
        ("press-07", "coordinator", "accept", "job", 1),
        ("press-07", "coordinator", "update", "job", 2),
        ("coordinator", "coordinator", "checked", "job", 2),
        ("coordinator", "coordinator", "committed", "job", 1),
        ("coordinator", "press-08", "verdict", "job", 2),
    }
    updates = [line for line in lines if line["what"] == "update"]
    assert len(updates) == 4
    assert all(line["bytes"] > 4 * PARAMETERS for line in updates), (
        "with the body that is kept beside the log"
    )
    table = run(capsys, home, "ls", "--last", "0")
    assert "press-07" in table
    assert "training-request" in table


def test_ls_shows_what_was_asked_for_the_newest_last(home: Path, capsys: Capsys) -> None:
    everything = listed(capsys, home, "--last", "0")
    assert listed(capsys, home) == everything[-50:]
    of_one = listed(capsys, home, "--device", "press-08", "--round", "2", "--last", "0")
    assert {line["what"] for line in of_one} >= {
        "training-request",
        "update",
        "checked",
        "receipt",
        "verdict",
    }
    assert all("press-08" in (line["from"], line["to"], line["device"]) for line in of_one)
    assert all(line["round"] == 2 for line in of_one)
    (newest,) = listed(capsys, home, "--what", "update", "--job", "job", "--last", "1")
    assert newest == [line for line in everything if line["what"] == "update"][-1]
    assert listed(capsys, home, "--job", "other") == []


def update_of(capsys: Capsys, home: Path, device: str) -> int:
    (line,) = listed(capsys, home, "--device", device, "--what", "update", "--round", "2")
    return int(line["index"])


def test_show_explains_a_folded_update(home: Path, capsys: Capsys) -> None:
    index = update_of(capsys, home, "press-07")
    text = run(capsys, home, "show", str(index))
    assert f"entry {index}, " in text
    assert "00000001.fbj at byte" in text
    assert "press-07 → coordinator: update, " in text
    assert "job job, round 2, request 2 to press-07" in text
    assert "decided update-received: job job, device press-07, request 2" in text
    assert "verdict: folded (entry " in text
    assert "into version 2 (entry " in text
    view = json.loads(run(capsys, home, "show", str(index), "--json"))
    assert view["verdict"]["folded"] is True
    assert view["version"]["version"] == 2
    assert view["verdict"]["entry"] > index


def test_show_says_why_an_update_was_rejected(home: Path, capsys: Capsys) -> None:
    index = update_of(capsys, home, "press-08")
    text = run(capsys, home, "show", str(index))
    assert "verdict: rejected (entry " in text
    assert "norm: 264.575 exceeds the job's update_norm_max 10" in text
    told = listed(capsys, home, "--device", "press-08", "--what", "verdict")[-1]
    text = run(capsys, home, "show", str(told["index"]))
    assert "coordinator → press-08: verdict" in text
    assert "reason norm: 264.575" in text


def test_entries_of_every_kind_can_be_shown(home: Path, capsys: Capsys) -> None:
    kinds = {(line["what"], line["from"]): line for line in listed(capsys, home, "--last", "0")}
    for line in kinds.values():
        assert f"{line['from']} → {line['to']}: {line['what']}" in run(
            capsys, home, "show", str(line["index"])
        )


def test_an_entry_that_is_not_there_is_an_error_that_says_how_many_are(home: Path, capsys: Capsys) -> None:
    assert "there is no entry 99999: the journal of" in run(capsys, home, "show", "99999", status=1)


def test_verify_reads_everything_and_says_so(home: Path, capsys: Capsys) -> None:
    result = json.loads(run(capsys, home, "verify", "--json"))
    assert result["whole"] is True
    assert (result["bodies"], result["strays"], result["snapshots"], result["damage"]) == (4, 0, 2, [])
    assert "4 bodies and 2 snapshots: each as it was written" in run(capsys, home, "verify")


def kept_files(home: Path) -> list[Path]:
    return [
        path for folder in ("journal", "bodies", "snapshots") for path in sorted((home / folder).iterdir())
    ]


def test_a_flipped_byte_anywhere_in_journal_bodies_and_snapshots_is_found_and_named(home: Path) -> None:
    files, rng = system_ports().files, random.Random(1)
    federation = load_identity(files, home).federation
    assert len(kept_files(home)) == 7
    for path in kept_files(home):
        whole = path.read_bytes()
        edges = [*range(8), 80, len(whole) - 1]
        drawn = [(rng.randrange(len(whole)), rng.randrange(8)) for _ in range(FLIPS)]
        for position, bit in [(position, bit) for position in edges for bit in range(8)] + drawn:
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            path.write_bytes(bytes(changed))
            damage = verify(files, home, federation).damage
            assert path in [one.file for one in damage], (path, position)
            assert all(one.offset <= position for one in damage if one.file == path)
        path.write_bytes(whole)
    assert verify(files, home, federation).damage == []


def test_a_wrong_length_is_found_where_an_update_came_in_one_message(tmp_path: Path) -> None:
    async def one_round() -> None:
        async with federation(tmp_path, system_ports(), 100) as fed:
            device = await fed.device("press-07")
            await fed.command("submit", spec=spec(rounds=1))
            await device.answer(await device.next(e.TrainingRequest), np.zeros(100, np.float32))
            await device.next(e.Verdict)

    asyncio.run(one_round())
    files = system_ports().files
    federation_id = load_identity(files, tmp_path).federation
    (path,) = (tmp_path / "bodies").iterdir()
    whole = path.read_bytes()
    for position, bit in [(position, bit) for position in range(8) for bit in range(8)]:
        changed = bytearray(whole)
        changed[position] ^= 1 << bit
        path.write_bytes(bytes(changed))
        assert [one.file for one in verify(files, tmp_path, federation_id).damage] == [path], (position, bit)


def test_what_was_cut_added_or_lost_is_found_and_named(home: Path) -> None:
    files = system_ports().files
    federation = load_identity(files, home).federation
    for path in kept_files(home):
        whole = path.read_bytes()
        for changed in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"x"):
            path.write_bytes(changed)
            assert path in [one.file for one in verify(files, home, federation).damage], path
        path.write_bytes(whole)
        if path.parent.name == "bodies":
            path.unlink()
            (lost,) = verify(files, home, federation).damage
            assert lost.file == path
            assert "names it, and it is missing" in lost.what
            path.write_bytes(whole)


def test_prune_on_a_young_journal_removes_nothing_and_says_so(home: Path, capsys: Capsys) -> None:
    before = {path: path.read_bytes() for path in kept_files(home)}
    assert "nothing to remove: the journal begins with entry 1" in run(capsys, home, "prune")
    nothing = {"first_entry": 1, "segments": 0, "bodies": 0, "freed_bytes": 0}
    assert json.loads(run(capsys, home, "prune", "--json")) == nothing
    assert {path: path.read_bytes() for path in kept_files(home)} == before


def test_damage_is_status_1_with_file_and_offset_for_people_and_programs(home: Path, capsys: Capsys) -> None:
    path = home / "journal" / "00000001.fbj"
    changed = bytearray(path.read_bytes())
    changed[200] ^= 1
    path.write_bytes(bytes(changed))
    for arguments in (("verify",), ("ls",), ("show", "1")):
        assert f"{path}: damaged at byte 72" in run(capsys, home, *arguments, status=1)
    capsys.readouterr()
    assert main(["journal", "verify", "--json", "--dir", str(home)]) == 1
    (damage,) = json.loads(capsys.readouterr().out)["damage"]
    assert (damage["file"], damage["offset"]) == (str(path), 72)


def test_a_body_that_no_entry_names_is_no_damage(home: Path) -> None:
    files = system_ports().files
    federation = load_identity(files, home).federation
    last = verify(files, home, federation)
    assert last.strays == 0
    segment = home / "journal" / "00000001.fbj"
    shutil.rmtree(home / "snapshots")
    log = segment.read_bytes()
    segment.write_bytes(log[: len(log) // 2])
    found = verify(files, home, federation)
    assert [one.file for one in found.damage] == [segment], "the journal ends torn, and nothing else is wrong"
    assert found.strays > 0


async def test_beside_a_coordinator_that_serves_a_frame_in_flight_is_no_damage(
    tmp_path: Path, capsys: Capsys
) -> None:
    async with served(tmp_path / "home") as fed:
        await fed.device("press-07")
        assert "entries in 1 segments" in await answer(fed, capsys, "journal", "verify")
        path = fed.coordinator.ledger.journal.path
        with path.open("ab") as file:
            file.write(b"half a frame")
        assert "each as it was written" in await answer(fed, capsys, "journal", "verify")
        size = fed.coordinator.ledger.journal.end
        with path.open("r+b") as file:
            file.truncate(size - 1)
        assert await fed.ports.offload.run(main, ["journal", "verify", "--dir", str(fed.directory)]) == 1
        assert f"{path}: damaged at byte" in capsys.readouterr().err
