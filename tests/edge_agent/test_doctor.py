"""The device's doctor: membership, settings, keys, clock, tasks and data, and a broker that is not right."""

from __future__ import annotations

import errno
import json
import os
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.checkup import Finding, Level
from broker.ports import File, Files, Ports, write_atomic
from broker.system import system_ports
from edge_agent import identity, ledger
from edge_agent.cli import main
from edge_agent.doctor import examine
from edge_agent.identity import Identity
from edge_agent.ledger import Ledger, LedgerData
from schemas.codec import pack
from schemas.jobs import TaskConfig
from tests.brokers import free_ports
from tests.coordinator.test_doctor import DAY_S, WrongClock
from tests.edge_agent.federation import DEVICE, Federation
from tests.edge_agent.party import UPDATE_KEY, tiny_model

pytestmark = pytest.mark.usefixtures("installed_tasks")

CONFIG: TaskConfig = {"shape": [4, 4], "classes": 3}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A member whose broker is not there, and whose owner allows it to train on digits."""
    directory = tmp_path / "home"
    member(directory, f"mqtt://127.0.0.1:{free_ports(1)[0]}")
    np.savez(tmp_path / "digits.npz", x=np.zeros((30, 4, 4), np.uint8), y=np.arange(30) % 3)
    allow(directory, 'tasks = ["vision"]', f'vision = "{tmp_path / "digits.npz"}"')
    return directory


def member(directory: Path, url: str) -> Identity:
    files = system_ports().files
    files.make_dir(directory)
    own = msgspec.structs.replace(Federation().member(), urls=[url])
    identity.save(files, directory, own)
    return own


def allow(directory: Path, policy: str, data: str) -> None:
    (directory / "agent.toml").write_text(f"[policy]\n{policy}\n[data]\n{data}\n")


def remember(directory: Path, data: LedgerData) -> None:
    write_atomic(system_ports().files, directory / ledger.FILE, pack(data))


async def findings(
    directory: Path, clock_off_s: float = 0.0, ports: Ports | None = None
) -> dict[str, Finding]:
    ports = ports or replace(system_ports(), clock=WrongClock(clock_off_s))
    return {finding.name: finding async for finding in examine(directory, ports, {})}


async def faults(directory: Path, clock_off_s: float = 0.0) -> dict[str, Finding]:
    found = await findings(directory, clock_off_s)
    return {name: finding for name, finding in found.items() if finding.level is Level.FAULT}


async def test_all_but_the_broker_is_examined_while_the_broker_is_away(home: Path) -> None:
    found = await findings(home)
    assert {name for name, finding in found.items() if finding.level is Level.FAULT} == {"broker"}
    assert "start the broker" in found["broker"].remedy
    assert f"device {DEVICE}" in found["membership"].measured
    assert found["data vision"].measured.endswith("samples 30, shape [4, 4], labels 0 to 2")
    assert not (home / "doctor.log").exists()


@pytest.mark.usefixtures("home")
async def test_a_directory_without_a_device_is_a_fault_with_the_command_that_enrols(tmp_path: Path) -> None:
    found = await faults(tmp_path / "elsewhere")
    assert set(found) == {"membership"}
    assert "fedbus-agent enroll" in found["membership"].remedy


async def test_a_revoked_device_is_told_so(home: Path) -> None:
    remember(home, LedgerData(revoked="stolen"))
    found = (await faults(home))["membership"]
    assert "stolen" in found.measured
    assert "new token" in found.remedy


async def test_keys_that_others_may_read_are_a_fault(home: Path) -> None:
    (home / identity.FILE).chmod(0o644)
    found = (await faults(home))["keys"]
    assert str(home / identity.FILE) in found.measured
    assert f"chmod -R go-rwx {home}" in found.remedy


async def test_a_clock_a_day_behind_the_last_connection_is_a_fault(home: Path) -> None:
    remember(home, LedgerData(connected_wall_s=system_ports().clock.wall_s()))
    assert "clock" not in await faults(home)
    found = (await faults(home, -DAY_S))["clock"]
    assert "24 h before the agent's last connection" in found.measured
    assert "timedatectl" in found.remedy


async def test_settings_that_cannot_be_used_are_a_fault_that_names_the_key(home: Path) -> None:
    allow(home, "taks = []", "")
    found = (await faults(home))["settings"]
    assert "taks" in found.measured


async def test_a_device_that_may_train_nothing_is_warned(home: Path) -> None:
    allow(home, "tasks = []", "")
    found = (await findings(home))["tasks"]
    assert found.level is Level.WARNING
    assert 'tasks = ["vision"]' in found.remedy


async def test_a_task_that_is_not_installed_is_a_fault(home: Path) -> None:
    allow(home, 'tasks = ["wash"]', "")
    found = (await faults(home))["task wash"]
    assert "vision" in found.measured, "what there is instead"
    assert "pip install" in found.remedy


async def test_a_processor_that_is_demanded_and_not_there_is_a_fault_of_the_task(home: Path) -> None:
    data = (home / "agent.toml").read_text().partition("[data]\n")[2].strip()
    allow(home, 'tasks = ["vision"]\ndevice = "mps"', data)
    found = (await faults(home))["task vision"]
    assert "device = 'mps' is demanded" in found.measured
    assert 'set device = "auto" or "cpu" under [policy] in agent.toml' in found.remedy


async def test_a_clients_key_that_others_may_read_is_a_fault(home: Path) -> None:
    (home / "client.key").touch(0o644)
    assert str(home / "client.key") in (await faults(home))["keys"].measured


async def test_a_task_without_data_is_warned_with_the_line_to_add(home: Path) -> None:
    allow(home, 'tasks = ["vision"]', "")
    found = (await findings(home))["data vision"]
    assert found.level is Level.WARNING
    assert '`vision = "FILE"`' in found.remedy


@pytest.mark.parametrize("content", [None, b"no npz"])
async def test_data_that_cannot_be_loaded_is_a_fault_that_names_the_file(
    home: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "digits.npz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = (await faults(home))["data vision"]
    assert str(path) in found.measured
    assert found.remedy


async def test_data_are_judged_by_the_job_that_waits_for_them(home: Path, tmp_path: Path) -> None:
    federation = Federation()
    model = tiny_model(federation)
    book = Ledger(system_ports().files, home)
    request = federation.request(model, UPDATE_KEY, task="vision", config=CONFIG)
    book.accept(request, version=0, epoch=0)
    assert (await findings(home))["data vision"].measured.endswith("train_samples 27")
    np.savez(tmp_path / "digits.npz", x=np.zeros((30, 5, 5), np.uint8), y=np.arange(30) % 3)
    assert "[4, 4]" in (await faults(home))["data vision"].measured


async def test_data_that_no_task_is_named_for_are_looked_for(home: Path, tmp_path: Path) -> None:
    allow(home, "tasks = []", f'here = "{tmp_path / "digits.npz"}"\ngone = "{tmp_path / "gone.npz"}"')
    found = await findings(home)
    assert found["data here"].level is Level.OK
    assert found["data gone"].level is Level.FAULT


async def test_a_task_without_an_inspection_of_its_own_is_imported_and_its_file_opened(
    home: Path, tmp_path: Path
) -> None:
    allow(home, 'tasks = ["odd-plain"]', f'odd-plain = "{tmp_path / "digits.npz"}"')
    assert (
        f"bytes {(tmp_path / 'digits.npz').stat().st_size}"
        in (await findings(home))["data odd-plain"].measured
    )


class Full:
    """A file system without room: what is there can be read. Locks and files."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __getattr__(self, name: str) -> object:
        return getattr(self.files, name)

    def hold(self, path: Path) -> AbstractContextManager[None]:
        raise no_room(path)

    def open(self, path: Path, *, create: bool = False, mode: int = 0o600) -> File:
        if create:
            raise no_room(path)
        return self.files.open(path, mode=mode)


def no_room(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def full_ports(*, lock: bool = True) -> Ports:
    ports = system_ports()
    full: Any = Full(ports.files)
    return replace(ports, files=full, lock=full if lock else ports.lock)


async def test_data_are_not_looked_at_on_a_disk_that_is_full_and_that_is_said(home: Path) -> None:
    found = await findings(home, ports=full_ports())
    assert found["state directory"].level is Level.FAULT
    assert "No space left on device" in found["state directory"].measured
    assert found["state directory"].remedy == f"free space on the file system of {home}"


@pytest.mark.usefixtures("home")
def test_another_users_device_is_left_alone(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(home.iterdir())
    owner = home.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert main(["doctor", "--dir", str(home)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{home} belongs to" in err
    assert "`sudo -u " in err
    assert sorted(home.iterdir()) == before


def test_the_command_fails_when_something_is_at_fault_and_names_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--dir", str(home), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is False
    assert "at fault: broker" in err
    assert main(["doctor", "--dir", str(home)]) == 1
    assert "start the broker" in capsys.readouterr().out
