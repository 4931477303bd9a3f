"""What ``jobs show`` and the errors of ``jobs`` and ``models`` tell a person."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.journal import Journal
from broker.system import system_ports
from coordinator.cli.main import main
from coordinator.effects import Fold
from coordinator.keystore import load_identity
from schemas.events import Decline
from schemas.jobs import ServerSettings
from tests.coordinator.drive import Drive, checked, job_spec, started

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, capsys: Capsys) -> Path:
    directory = tmp_path / "home"
    assert main(["init", "--dir", str(directory)]) == 0
    capsys.readouterr()
    return directory


def record(directory: Path, drive: Drive) -> None:
    """Give a state directory the log of ``drive``."""
    asyncio.run(_record(directory, drive))


async def _record(directory: Path, drive: Drive) -> None:
    ports = system_ports()
    federation = load_identity(ports.files, directory).federation
    journal = Journal.open(ports.files, directory / "journal", federation)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(journal.run(ports.offload), name="journal")
        for data in drive.log:
            await journal.append(data)
        running.cancel()
    journal.close()


def shown(directory: Path, capsys: Capsys) -> list[str]:
    assert main(["jobs", "show", "job", "--dir", str(directory)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [line for line in out.splitlines() if line]


def decline(drive: Drive, device: str, reason: str) -> None:
    number = drive.newest(device).number
    drive.say(device, Decline(job="job", request=number, reason=reason, text=f"{device} says why"))
    drive.settle()


def reject(drive: Drive, device: str) -> None:
    drive.update(device)
    (fold,) = (work for work in drive.pending if isinstance(work, Fold))
    drive.pending.remove(fold)
    drive.step(checked(fold, "finite: it holds NaN"))
    drive.settle()


def test_a_job_that_waits_for_its_first_cohort_says_for_how_many_and_until_when(
    home: Path, capsys: Capsys
) -> None:
    drive = Drive()
    drive.enrol("a")
    drive.submit(job_spec(cohort=3, min_reports=2, deadline_s=90))
    drive.settle()
    record(home, drive)
    state, waits = shown(home, capsys)
    assert state == "job job: running"
    assert "waits for devices that allow task vision: begins with 3 of them, or after 90 s with 2" in waits
    assert f"fedbus-coordinator devices list --dir {home}" in waits


def test_a_server_optimiser_is_told_with_what_it_clipped(home: Path, capsys: Capsys) -> None:
    server = ServerSettings(optimiser="fedadam", clip_norm=0.5)
    drive = Drive()
    drive.enrol("a", "b")
    drive.submit(replace(job_spec(cohort=2), server=server))
    drive.settle()
    for device in "ab":
        drive.update(device)
    drive.settle()
    record(home, drive)
    told = shown(home, capsys)[1]
    assert told == "server: optimiser fedadam, learning_rate 0.1, clip_norm 0.5 (2 of 2 changes were longer)"
    assert main(["jobs", "show", "job", "--json", "--dir", str(home)]) == 0
    view = json.loads(capsys.readouterr().out)
    assert view["server"]["optimiser"] == "fedadam"
    assert view["history"][0]["norms"] == {"a": 1.0, "b": 1.0}


def test_declines_and_rejections_of_rounds_long_closed_are_told_with_their_reasons(
    home: Path, capsys: Capsys
) -> None:
    drive = started("abc", cohort=3)
    decline(drive, "a", "policy")
    reject(drive, "b")
    drive.update("c")
    drive.settle()
    assert drive.state.jobs["job"].rounds_done == 1
    record(home, drive)
    told = shown(home, capsys)
    assert "round 1: a: declined: policy: a says why" in told
    assert "round 1: b: rejected: finite: it holds NaN" in told
    assert "round 2: b: issued" in told
    assert main(["jobs", "show", "job", "--json", "--dir", str(home)]) == 0
    troubles = json.loads(capsys.readouterr().out)["troubles"]
    assert [(each["round"], each["device"], each["state"]) for each in troubles] == [
        (1, "a", "declined"),
        (1, "b", "rejected"),
    ]


def test_a_round_with_too_few_updates_and_nobody_left_says_that_it_waits_for_its_deadline(
    home: Path, capsys: Capsys
) -> None:
    drive = started("ab", cohort=2)
    decline(drive, "a", "busy")
    record(home, drive)
    assert shown(home, capsys)[-1] == "round 1: b: issued"
    (home / "journal").rename(home / "journal before")
    reject(drive, "b")
    record(home, drive)
    assert "0 of min_reports = 1 folded and nobody left to answer" in shown(home, capsys)[-1]


def test_the_newest_refusals_are_shown_and_the_others_counted(home: Path, capsys: Capsys) -> None:
    devices = [f"d{number:02}" for number in range(12)]
    drive = started(devices, cohort=12)
    for device in devices:
        decline(drive, device, "busy")
    record(home, drive)
    told = [line for line in shown(home, capsys) if "declined" in line or "earlier" in line]
    assert told[0].startswith("2 earlier refusals: ")
    assert [line.split(": ")[1] for line in told[1:]] == devices[2:]


@pytest.mark.parametrize("text", ['name = "a"\ntask = "vision"\nronds = 3\n', 'name = "a"\n'])
def test_a_job_file_with_a_wrong_field_is_named_with_the_field_before_anybody_is_asked(
    text: str, home: Path, tmp_path: Path, capsys: Capsys
) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text)
    assert main(["jobs", "submit", str(file), "--dir", str(home)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedbus-coordinator: {file}: job specification: ")
    assert ("`ronds`" if "ronds" in text else "`task`") in line
    assert "docs/jobs.md" in line


def test_a_folder_is_neither_a_job_file_nor_a_place_for_a_model(
    home: Path, tmp_path: Path, capsys: Capsys
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["jobs", "submit", str(tmp_path), "--dir", str(home)]) == 2
    assert "give the path of a job's specification" in capsys.readouterr().err
    assert main(["models", "export", "a", str(tmp_path), "--dir", str(home)]) == 2
    assert f"{tmp_path} is a folder; name the file to write" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
