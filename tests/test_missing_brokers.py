"""Tests that want a broker or a data set, on a machine that has none: skipped and named, an error in CI; and
how ``make test`` installs it where it may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import PACKAGES
from tests.conftest import ENABLE

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests/install_brokers.sh"
WANTED = [
    f"tests/contract/test_bus.py::test_a_cancelled_reader_loses_nothing[{kind}]"
    for kind in ("memory", "mosquitto")
]
PRETEND = "from tests import brokers\nbrokers.PACKAGES['mosquitto'] = '/nowhere/mosquitto'\n"
# Notes whether services may start while packages are installed.
APT_GET = """#!/bin/sh
echo "apt-get $*" >>"$LOG"
policy=$DESTDIR/usr/sbin/policy-rc.d
[ "$1" = update ] || { "$policy" && echo services start || echo "policy $?"; } >>"$LOG"
exit ${APT_GET_STATUS:-0}
"""


def run_pytest(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two transports' share of a test, as if Mosquitto was not installed."""
    (folder / "pretend.py").write_text(PRETEND)
    inherited = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pretend", "-p", "no:cacheprovider", *WANTED],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": f"{folder}:{ROOT}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_test_without_its_broker_is_skipped_and_named_with_the_one_command_that_helps(
    tmp_path: Path,
) -> None:
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    summary = done.stdout.partition("not tested")[2]
    assert f"{WANTED[1]}: " in summary
    assert "mosquitto is not installed" in summary
    assert summary.count(ENABLE) == 1


def test_in_ci_such_a_skip_is_a_failure_that_says_what_is_missing(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CI="true")
    assert done.returncode == 1, done.stdout
    assert "1 passed, 1 error" in done.stdout
    assert f"mosquitto is not installed; install it: {ENABLE}" in done.stdout


class Machine:
    """A folder as the root of a file system, and programs that only take notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "usr/sbin/policy-rc.d"
        self.policy.parent.mkdir(parents=True)
        self._log = folder / "log"
        self._bin = folder / "bin"
        self.program("bin/apt-get", APT_GET)
        self.program("usr/bin/systemd-analyze", "")
        self.program("usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz", "")
        self.program("bin/systemctl", '#!/bin/sh\necho "systemctl $*" >>"$LOG"\n')
        self.be(0)

    def program(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)
        (self.folder / path).chmod(0o755)

    def be(self, user: int) -> None:
        self.program("bin/id", f"#!/bin/sh\necho {user}\n")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{self._bin}:{os.environ['PATH']}"
        environment |= {"PATH": path, "DESTDIR": str(self.folder), "LOG": str(self._log)}
        return subprocess.run(
            ["sh", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
        )

    def log(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_missing_brokers_are_installed_and_not_started(machine: Machine) -> None:
    assert machine.run().returncode == 0
    assert machine.log() == [
        "apt-get update -qq",
        "apt-get install -qq -y --no-install-recommends mosquitto rabbitmq-server",
        "policy 101",
        "systemctl disable --quiet mosquitto rabbitmq-server",
    ]
    assert not machine.policy.exists()


def test_a_policy_that_was_there_stays(machine: Machine) -> None:
    machine.program("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 104\n")
    assert machine.run().returncode == 0
    assert "policy 104" in machine.log()
    assert machine.policy.exists()


def test_what_is_there_is_left_alone(machine: Machine) -> None:
    machine.program("usr/sbin/mosquitto", "")
    assert machine.run().returncode == 0
    assert "apt-get install -qq -y --no-install-recommends rabbitmq-server" in machine.log()
    machine.program("usr/lib/rabbitmq/bin/rabbitmq-server", "")
    noted = machine.log()
    assert machine.run().returncode == 0
    assert machine.log() == noted


def test_a_missing_data_set_is_installed_and_has_no_service(machine: Machine) -> None:
    machine.program("usr/sbin/mosquitto", "")
    machine.program("usr/lib/rabbitmq/bin/rabbitmq-server", "")
    shutil.rmtree(machine.folder / "usr/share/datasets")
    assert machine.run().returncode == 0
    assert machine.log() == [
        "apt-get update -qq",
        "apt-get install -qq -y --no-install-recommends dataset-fashion-mnist",
        "policy 101",
    ]


def test_the_script_installs_whatever_a_test_may_want(machine: Machine) -> None:
    for name in ("usr/bin/systemd-analyze", "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"):
        (machine.folder / name).unlink()
    (machine.folder / "usr/share/datasets/fashion-mnist").rmdir()
    assert machine.run().returncode == 0
    (line,) = [line for line in machine.log() if line.startswith("apt-get install")]
    assert set(line.partition("--no-install-recommends ")[2].split()) == set(PACKAGES)


@pytest.mark.parametrize(("user", "apt_get_status"), [(1000, 0), (0, 100)])
def test_who_cannot_install_is_told_and_the_tests_go_on(
    machine: Machine, user: int, apt_get_status: int
) -> None:
    machine.be(user)
    status = str(apt_get_status)
    assert machine.run(APT_GET_STATUS=status).returncode == 1
    assert machine.run("--if-possible", APT_GET_STATUS=status).returncode == 0
    assert not machine.policy.exists()
    assert bool(machine.log()) == (user == 0)
