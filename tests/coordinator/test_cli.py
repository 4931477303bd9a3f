"""The command line: what it refuses, how it says so, what it prints for programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from broker.journal import Journal
from broker.system import system_ports
from broker.worker import with_our_packages
from coordinator.cli.main import main
from coordinator.keystore import load_identity

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, capsys: Capsys) -> Path:
    """A federation without a job."""
    directory = tmp_path / "home"
    assert main(["init", "--dir", str(directory)]) == 0
    with_journal(directory)
    capsys.readouterr()
    return directory


def with_journal(directory: Path) -> None:
    files = system_ports().files
    Journal.open(files, directory / "journal", load_identity(files, directory).federation).close()


def program(
    arguments: Sequence[str], *, cwd: Path | None = None, python: Sequence[str] = ("-P",)
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python, "-m", "coordinator.cli", *arguments],
        cwd=cwd,
        env=with_our_packages(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_error_line(capsys: Capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fedbus-coordinator: ")
    return err


def test_init_records_a_free_port_so_that_tokens_can_name_it(tmp_path: Path, capsys: Capsys) -> None:
    assert main(["init", "--dir", str(tmp_path / "home"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    port = int(made["broker"].removeprefix("embedded:"))
    assert 0 < port < 65_536
    assert f'broker = "embedded:{port}"' in (tmp_path / "home" / "coordinator.toml").read_text()


def test_init_keeps_a_login_in_the_url_out_of_settings_and_tokens(tmp_path: Path, capsys: Capsys) -> None:
    url = "mqtt://flc:s%40cret@broker.example:1884"
    assert main(["init", "--dir", str(tmp_path / "home"), "--broker", url, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["broker"], made["username"]) == ("mqtt://broker.example:1884", "flc")
    assert made["device_urls"] == ["mqtt://broker.example:1884"]
    assert (tmp_path / "home" / "keys" / "broker.password").read_text() == "s@cret\n"
    assert "cret" not in (tmp_path / "home" / "coordinator.toml").read_text()


def test_a_second_init_of_a_directory_is_refused_and_changes_nothing(home: Path, capsys: Capsys) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert main(["init", "--dir", str(home)]) == 2
    assert "holds a federation already" in one_error_line(capsys)
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("url", ["http://host", "mqtt://", "mqtt://host:99999", "embedded:x", 'mqtt://a"b'])
def test_a_broker_url_that_nothing_understands_is_refused_before_anything_is_made(
    url: str, tmp_path: Path, capsys: Capsys
) -> None:
    assert main(["init", "--dir", str(tmp_path / "home"), "--broker", url]) == 2
    assert "broker" in one_error_line(capsys)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["jobs", "list"],
        ["jobs", "show", "a"],
        ["devices", "list"],
        ["invite", "press-07"],
        ["models", "list", "a"],
        ["serve"],
    ],
)
def test_a_directory_without_a_federation_is_named_with_the_remedy(
    command: list[str], tmp_path: Path, capsys: Capsys
) -> None:
    if command == ["serve"]:
        done = program([*command, "--dir", str(tmp_path)])
        status, error = done.returncode, done.stderr
    else:
        status, error = main([*command, "--dir", str(tmp_path)]), one_error_line(capsys)
    assert status == 2
    assert f"{tmp_path} is no coordinator's state directory" in error
    assert "fedbus-coordinator init" in error


@pytest.mark.parametrize(
    "command",
    [["invite", "a"], ["devices", "revoke", "a"], ["devices", "release", "a"], ["jobs", "cancel", "a"]],
)
def test_a_command_that_needs_a_live_coordinator_says_how_to_start_one(
    command: list[str], home: Path, capsys: Capsys
) -> None:
    assert main([*command, "--dir", str(home)]) == 1
    assert f"fedbus-coordinator serve --dir {home}" in one_error_line(capsys)


def test_reading_commands_read_the_log_when_nobody_serves(home: Path, capsys: Capsys) -> None:
    for command in (["jobs", "list"], ["devices", "list"]):
        assert main([*command, "--json", "--dir", str(home)]) == 0
        assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    "command", [["jobs", "show", "a"], ["models", "list", "a"], ["models", "export", "a", "out.safetensors"]]
)
def test_a_job_that_does_not_exist_is_named(command: list[str], home: Path, capsys: Capsys) -> None:
    assert main([*command, "--dir", str(home)]) == 1
    assert "there is no job a" in one_error_line(capsys)


def test_a_job_file_that_is_missing_or_no_toml_is_refused(home: Path, tmp_path: Path, capsys: Capsys) -> None:
    file = tmp_path / "job.toml"
    assert main(["jobs", "submit", str(file), "--dir", str(home)]) == 2
    assert f"there is no file {file}" in one_error_line(capsys)
    file.write_text("rounds = \n")
    assert main(["jobs", "submit", str(file), "--dir", str(home)]) == 2
    assert re.search(r"job\.toml: not TOML: .* line 1", one_error_line(capsys))
    file.write_text('name = "a"\n')
    assert main(["jobs", "submit", str(file), "--parameters", "gone", "--dir", str(home)]) == 2
    assert "there is no file gone" in one_error_line(capsys)


def test_a_wrong_option_has_status_2_and_help_has_status_0(capsys: Capsys) -> None:
    assert main(["jobs", "list", "--no-such-option"]) == 2
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out


def test_two_coordinators_on_one_state_directory_are_refused(home: Path) -> None:
    with system_ports().lock.hold(home / "lock"):
        done = program(["serve", "--dir", str(home)])
    assert (done.returncode, done.stdout) == (1, "")
    wanted = f"another coordinator (pid {os.getpid()}) serves {home}; stop it first"
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr


def test_a_state_directory_with_the_journal_of_another_federation_is_refused(
    home: Path, tmp_path: Path, capsys: Capsys
) -> None:
    other = tmp_path / "other"
    assert main(["init", "--dir", str(other)]) == 0
    capsys.readouterr()
    (home / "journal").rename(other / "journal")
    done = program(["serve", "--dir", str(other)])
    assert done.returncode == 1
    assert "another federation" in done.stderr or "belongs to federation" in done.stderr
    assert "Traceback" not in done.stderr
    assert main(["jobs", "list", "--dir", str(other)]) == 1
    one_error_line(capsys)


def test_a_package_shadowed_by_the_working_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "__init__.py").write_text("raise SystemExit('the wrong package ran')\n")
    done = program(["jobs", "list"], cwd=tmp_path, python=())
    assert done.returncode == 1
    assert f"package schemas comes from {tmp_path / 'schemas'}" in done.stderr
    assert "python -P" in done.stderr
    assert "ran" not in done.stderr.replace("fedbus-coordinator", "")


@pytest.mark.parametrize("options", [["--alpha", "0"], ["--devices", "50", "--alpha", "0.001"]])
def test_a_demo_that_cannot_be_leaves_its_directory_for_another(
    options: list[str], tmp_path: Path, capsys: Capsys
) -> None:
    directory = tmp_path / "demo"
    assert main(["demo", "--dir", str(directory), *options]) == 2
    assert "alpha" in one_error_line(capsys)
    assert not (directory / "demo.json").exists()


def test_a_demo_keeps_out_of_a_directory_that_holds_something_else(tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["demo", "--dir", str(tmp_path)]) == 2
    assert "choose another --dir" in one_error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_demo_of_other_settings_is_not_gone_on_with(tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "demo.json").write_text('{"devices": 5, "rounds": 20, "alpha": 0.3, "seed": 0, "broker": ""}')
    assert main(["demo", "--dir", str(tmp_path), "--seed", "4"]) == 2
    assert "holds a demo with --seed 0, not 4" in one_error_line(capsys)
