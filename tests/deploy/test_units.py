"""The systemd units: systemd accepts them, and they are shut off from what they don't need."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from coordinator.broker_admin.mosquitto import CHANGED
from tests.brokers import SYSTEMD_ANALYZE, require

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
PROGRAMS = "/opt/fedbus/bin"
MOSQUITTO_FOLDER = "/etc/mosquitto/fedbus"  # as `fedbus-coordinator broker mosquitto` proposes
RELOAD = "fedbus-mosquitto-reload"
# systemd's measure, from 0 (shut off) to 10.
EXPOSURE_MAX = {"fedbus-coordinator.service": 1.5, "fedbus-agent.service": 1.7, "fedbus-agent@.service": 1.7}


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    require("systemd")
    return subprocess.run([SYSTEMD_ANALYZE, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as on a machine that has our programs, and Mosquitto."""
    for name in ("fedbus-coordinator", "fedbus-agent"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "mosquitto.service").write_text("[Service]\nExecStart=/bin/true\n")
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAMS, str(tmp_path)))
    return tmp_path


def test_systemd_finds_nothing_to_complain_about(installed: Path) -> None:
    units = sorted(str(installed / unit.name) for unit in UNITS.iterdir())
    done = analyze("verify", *units)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_mistake_in_a_unit_would_be_found(installed: Path) -> None:
    unit = installed / "fedbus-agent.service"
    unit.write_text(unit.read_text().replace("Restart=on-failure", "Restart=on-faliure"))
    assert "on-faliure" in analyze("verify", str(unit)).stderr


@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_a_service_is_shut_off_from_what_it_does_not_need(name: str, installed: Path) -> None:
    done = analyze("security", "--offline=true", str(installed / name))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE_MAX[name], done.stdout


def test_both_names_of_the_agents_unit_are_one_file() -> None:
    template = UNITS / "fedbus-agent@.service"
    assert template.is_symlink()
    assert template.resolve() == UNITS / "fedbus-agent.service"


def test_what_the_coordinator_leaves_for_mosquitto_is_looked_for_and_taken_away_before_the_reload() -> None:
    assert f"PathExists={MOSQUITTO_FOLDER}/{CHANGED}\n" in (UNITS / f"{RELOAD}.path").read_text()
    steps = re.findall(r"^ExecStart\w*=(\w+) (.*)", (UNITS / f"{RELOAD}.service").read_text(), re.MULTILINE)
    assert [program for program, _ in steps] == ["sleep", "rm", "systemctl"]
    assert steps[1][1] == f"-f {MOSQUITTO_FOLDER}/{CHANGED}"
    assert f"ReadWritePaths=-{MOSQUITTO_FOLDER}\n" in (UNITS / "fedbus-coordinator.service").read_text()


def test_the_page_installs_units_that_exist_and_all_of_them() -> None:
    page = (UNITS.parent / "README.md").read_text()
    named = re.findall(r"deploy/systemd/(\S+)", page)
    found = {unit.name for pattern in named for unit in UNITS.glob(pattern)}
    assert all(any(UNITS.glob(pattern)) for pattern in named)
    assert found == {unit.name for unit in UNITS.iterdir()}
