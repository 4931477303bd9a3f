"""docs/replay.md, typed from its first block to its last; one device of the recording has flipped labels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import torch

from broker.worker import with_our_packages
from coordinator.cli.main import main
from coordinator.config import FILE, Config, config_text
from tests.flipped import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE: Final = Path(__file__).parents[2] / "docs" / "replay.md"
ELSEWHERE: Final = frozenset({"Record from a live bus", "Onto a bus"})
"""Sections whose commands other tests run: they need a broker."""
SEED: Final = 102  # flips device-3
ROUNDS: Final = 12
PNG: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Typed:
    """A command of the page, and what it said."""

    line: str
    out: str


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with DIR and test.npz, as the page has them."""
    folder = tmp_path_factory.mktemp("page")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with so little to train, more are slower
    try:
        run = record(folder / "run", SEED, ROUNDS)
    finally:
        torch.set_num_threads(threads)
    assert run.device == "device-3"
    ignored = shutil.ignore_patterns("*.sock")
    shutil.copytree(run.home, folder / "DIR", ignore=ignored)
    (folder / "DIR" / FILE).write_text(config_text(Config(broker="memory:0")))
    shutil.copy(run.test, folder / "test.npz")
    return folder


@pytest.fixture(scope="module")
def typed(recorded: Path) -> list[Typed]:
    """Every command, in order."""
    said = []
    for language, block in blocks():
        if language == "toml":
            (recorded / file_of(block)).write_text(block)
            continue
        assert language == "sh", f"who runs this block? {block}"
        said += [Typed(line, run(recorded, line)) for line in block.splitlines()]
    return said


def blocks() -> Iterator[tuple[str, str]]:
    """Language and text of the page's blocks."""
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if section.partition("\n")[0] not in ELSEWHERE:
            yield from re.findall(r"^```(\w*)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def file_of(block: str) -> str:
    """The file that the page names before a block."""
    before = PAGE.read_text(encoding="utf-8").split(block)[0]
    return str(re.findall(r"`([\w.-]+\.toml)`", before)[-1])


def run(folder: Path, line: str) -> str:
    program = Path(sys.executable).with_name("fedbus-coordinator")
    path = f"{program.parent}:{os.environ['PATH']}"
    environment = {**with_our_packages(os.environ), "PATH": path}
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def said(typed: list[Typed], part: str) -> str:
    """What the one command with this in it said."""
    (found,) = [one.out for one in typed if re.search(part, one.line)]
    return found


def first_row(table: str) -> list[str]:
    """The cells of a table's first line."""
    return [cell.strip() for cell in re.findall(r"^│(.*)│$", table, re.MULTILINE)[0].split("│")]


def test_every_command_of_the_page_is_run_and_succeeds(typed: list[Typed]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for section in ELSEWHERE:
        page = re.sub(rf"^## {section}\n.*?(?=^## |\Z)", "", page, flags=re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^(?:fedbus-|tar ).*$", page, re.MULTILINE)
    assert [one.line for one in typed] == commands
    assert len(commands) > 12


def test_the_recording_is_whole_and_its_models_follow_from_it(typed: list[Typed]) -> None:
    assert "each as it was written" in said(typed, "verify --dir DIR$")
    assert "13 versions computed again from the log, 13 digests equal" in said(typed, "replay DIR$")
    assert json.loads(said(typed, "--until 12"))["equal"] is True


def test_the_device_that_spoiled_the_round_stands_first(typed: list[Typed]) -> None:
    assert first_row(said(typed, "--job digits --blame --round 12$"))[0] == "device-3"
    measured = said(typed, "--blame .*--evaluate")
    assert first_row(measured)[0] == "device-3"
    assert "loss without it" in measured
    assert re.search(r"with all: loss 0\.\d+, accuracy 0\.\d+", measured)
    assert "update" in said(typed, "--device device-3 --round 12")


def test_without_it_the_round_is_better_and_the_plot_shows_it(typed: list[Typed], recorded: Path) -> None:
    told = said(typed, "--what-if")
    rows = [[cell.strip() for cell in row.split("│")] for row in re.findall(r"^│(.*)│$", told, re.MULTILINE)]
    assert [row[:2] for row in rows[1:]] == [[str(n), "4 of 5"] for n in range(1, ROUNDS + 1)]
    without, as_recorded = (float(rows[-1][at]) for at in (-2, -1))
    assert without > as_recorded
    assert (recorded / "without.png").read_bytes().startswith(PNG)


def test_the_colleague_computes_equal_digests_and_finds_the_same_device(
    typed: list[Typed], recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = json.loads(said(typed, "--until 12"))["jobs"]["digits"]
    capsys.readouterr()
    assert main(["replay", str(recorded / "for-a-colleague"), "--json"]) == 0
    theirs = json.loads(capsys.readouterr().out)["jobs"]["job-1"]
    assert [one["computed"] for one in theirs] == [one["computed"] for one in ours]
    assert first_row(said(typed, "--job job-1 --blame"))[0] == "device-3"  # the third that joined


def blamed(
    recorded: Path, capsys: pytest.CaptureFixture[str], dataset: str, *what: str, status: int = 0
) -> str:
    capsys.readouterr()
    asked = ["replay", str(recorded / "DIR"), *what, "--evaluate", str(recorded / dataset)]
    assert main(asked) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_what_is_measured_is_told_for_programs_too(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(blamed(recorded, capsys, "test.npz", "--blame", "--round", "12", "--json"))
    losses = [one["without"]["loss"] for one in found["devices"]]
    assert losses == sorted(losses)
    assert found["devices"][0]["without"]["accuracy"] > found["evaluation"]["accuracy"]


def test_a_data_set_that_is_not_there_is_named_once(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recorded / "nothing.npz"
    error = blamed(recorded, capsys, path.name, "--blame", "--round", "12", status=1)
    assert error.startswith(f"fedbus-coordinator: {path}: no such file; ")
    assert error.count(path.name) == 1


def test_a_data_set_of_another_task_is_refused_by_name(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recorded / "rows.npz").write_text("no archive")
    error = blamed(recorded, capsys, "rows.npz", "--blame", "--round", "12", status=1)
    assert error.count(str(recorded / "rows.npz")) == 1
    assert "is not an npz file of plain arrays" in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--evaluate", "test.npz"], "--evaluate needs --what-if or --blame"),
        (["--plot", "a.png"], "--plot needs --what-if"),
        (["--blame", "--round", "12", "--plot", "a.png"], "--plot needs --what-if"),
    ],
)
def test_what_needs_another_option_says_so(
    recorded: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["replay", str(recorded / "DIR"), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_without_a_data_set_the_plot_shows_distances(
    recorded: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings, plot = tmp_path / "equal.toml", tmp_path / "equal.png"
    settings.write_text('weights = "equal"\n')
    asked = ["replay", str(recorded / "DIR"), "--what-if", str(settings), "--plot", str(plot)]
    assert main(asked) == 0
    assert f"plot {plot}" in capsys.readouterr().out
    assert plot.read_bytes().startswith(PNG)
