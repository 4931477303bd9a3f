"""What ``replay --onto`` and ``journal stage`` say, and how they end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli.main import main
from coordinator.config import Config
from coordinator.onto import ask, play
from coordinator.onto.report import Report, percentile
from coordinator.rekey.devices import MARK
from coordinator.rekey.export import export
from tests.replay.history import record, unsynced

URL = "mqtt://127.0.0.1:1"
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export."""
    folder = tmp_path_factory.mktemp("onto")
    export(unsynced(), record(folder / "home"), folder / "told", Config(broker="embedded:20000"))
    return folder / "told"


def reporting(patch: pytest.MonkeyPatch, report: Report) -> list[tuple[Any, ...]]:
    """Have nothing played, and this said; what would have been played is in the list."""
    asked: list[tuple[Any, ...]] = []

    async def reported(ports: object, source: object, dial: object, *rest: Any) -> Report:
        asked.append(rest)
        return report

    patch.setattr(play, "play_devices", reported)
    patch.setattr(ask, "ask_agent", reported)
    return asked


def a_report(**fields: Any) -> Report:
    report = Report("job-1 by 3 devices", "update to receipt", "50", played=4, accepted=3, **fields)
    report.rejected["late"] += 1
    report.latencies_s = [0.002, 0.001, 0.004, 0.003]
    report.final = {"version": 2, "recorded": "ab", "played": "ab", "equal": True}
    return report


def test_an_equal_playing_is_told_in_a_few_lines(
    told: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = reporting(monkeypatch, a_report())
    assert main(["replay", str(told), "--onto", URL, "--speed", "50"]) == 0
    assert asked == [(50.0, "")]
    assert capsys.readouterr().out.splitlines() == [
        "job-1 by 3 devices, speed 50: 4 updates",
        "accepted 3, rejected 1 (late: 1), declined 0",
        "update to receipt: median 2.0 ms, p99 4.0 ms",
        "version 2: ab, the recorded digest",
    ]


def test_differing_answers_are_told_of_and_the_exit_status_is_1(
    told: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = a_report()
    report.differs(2, "device-1", "update", "ab" * 32, "cd" * 32, max=0.5, relative=0.01)
    asked = reporting(monkeypatch, report)
    arguments = ["replay", str(told), "--onto", URL, "--device", "device-1", "--speed", "max"]
    assert main(arguments) == 1
    assert asked == [(float("inf"), "device-1", "")]
    said = capsys.readouterr()
    assert "differing answers: 1" in said.err
    for part in ("device-1", "abab", "cdcd", "0.5", "0.01", "relative"):
        assert part in said.out
    assert main([*arguments, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["equal"]
    assert document["differing"][0]["recorded"] == "ab" * 32
    assert document["latency_ms"] == {"median": 2.0, "p99": 4.0}


def test_another_last_version_and_a_silence_end_with_status_1(
    told: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = a_report()
    report.final = {"version": 2, "recorded": "ab", "played": "cd", "equal": False}
    reporting(monkeypatch, report)
    assert main(["replay", str(told), "--onto", URL]) == 1
    assert "the last version (2) is not the recorded one" in capsys.readouterr().err
    reporting(monkeypatch, a_report(stopped="device-1: no receipt within 60 s"))
    assert main(["replay", str(told), "--onto", URL]) == 1
    assert "stopped: device-1: no receipt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--onto", URL, "--speed", "fast"], "--speed fast: a number above 0"),
        (["--onto", URL, "--speed", "0"], "--speed 0: a number above 0"),
        (["--onto", URL, "--speed", "nan"], "--speed nan: a number above 0"),
        (["--onto", URL, "--until", "3"], "--onto goes with"),
        (["--speed", "50"], "need --onto"),
        (["--device", "device-1"], "need --onto"),
    ],
)
def test_what_does_not_go_together_is_refused(
    told: Path, capsys: Capsys, arguments: list[str], part: str
) -> None:
    assert main(["replay", str(told), *arguments]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--onto", "nowhere"], "broker URL"),
        (["--onto", "amqp://broker.example.org"], "not for a device"),
        (["--onto", URL, "--device", "press-07"], "its devices: device-1, device-2, device-3"),
        (["--onto", URL, "--job", "job-2"], "no job job-2 was trained; trained: job-1"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    told: Path, capsys: Capsys, arguments: list[str], part: str
) -> None:
    assert main(["replay", str(told), *arguments]) == 1
    assert part in capsys.readouterr().err


def test_an_authority_that_is_no_text_is_refused_by_name(told: Path, capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "ca.der").write_bytes(b"\x30\x82\xff")
    assert main(["replay", str(told), "--onto", URL, "--ca", str(tmp_path / "ca.der")]) == 2
    assert "ca.der: no text; name the PEM file" in capsys.readouterr().err


def test_a_folder_with_agents_in_it_that_is_no_export_is_refused(
    told: Path, capsys: Capsys, tmp_path: Path
) -> None:
    """As a demo's is."""
    demo = tmp_path / "demo"
    shutil.copytree(told, demo)
    (demo / MARK).unlink()
    assert main(["replay", str(demo), "--onto", URL]) == 1
    assert f"{demo} is no re-keyed export" in capsys.readouterr().err


def test_a_federations_own_keys_are_refused(told: Path, capsys: Capsys) -> None:
    home = told.with_name("home")
    for arguments in (["replay", str(home), "--onto", URL], ["journal", "stage", "x", "--dir", str(home)]):
        assert main(arguments) == 1
        assert "journal export --rekey" in capsys.readouterr().err


def test_stage_says_what_is_next(told: Path, capsys: Capsys, tmp_path: Path) -> None:
    target = tmp_path / "begun"
    assert main(["journal", "stage", str(target), "--dir", str(told), "--broker", URL, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made == {"dir": str(target), "job": "job-1", "broker": URL}
    assert main(["journal", "stage", str(target), "--dir", str(told)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 50) is None
    assert percentile([0.005], 99) == 5.0
    assert percentile([number / 1000 for number in range(1, 101)], 99) == 99.0
