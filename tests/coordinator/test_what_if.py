"""The recorded updates under other settings, and which of them pulled against the others."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from broker.system import system_ports
from coordinator.cli.main import main
from coordinator.config import FILE, Config, config_text
from schemas import events as e
from tests.standin import federation, spec

COUNT = 4
DELTAS = {"d0": [1.0, 1.0, 0.0, 0.0], "d1": [1.0, 0.0, 1.0, 0.0], "d2": [-3.0, 0.0, 0.0, 0.0]}
SAMPLES = {"d0": 1, "d1": 2, "d2": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of three devices, of which d2 pulls the other way."""
    home = tmp_path_factory.mktemp("what-if") / "home"
    asyncio.run(record(home))
    (home / FILE).write_text(config_text(Config(broker="memory:0")))
    return home


async def record(home: Path) -> None:
    async with federation(home, system_ports(), COUNT) as fed:
        devices = [await fed.device(name) for name in DELTAS]
        await fed.command("submit", spec=spec(rounds=2, cohort=3, min_reports=3))
        for _ in (1, 2):
            for device in devices:
                request = await device.next(e.TrainingRequest)
                delta = np.array(DELTAS[device.id], np.float32)
                await device.answer(request, delta, samples=SAMPLES[device.id])
        await devices[0].next(e.JobFinished)  # said once the last version is durable


def asked(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> list[dict[str, float]]:
    settings = tmp_path / "job.toml"
    settings.write_text(text)
    capsys.readouterr()
    assert main(["replay", str(home), "--what-if", str(settings), "--json"]) == 0
    versions: list[dict[str, float]] = json.loads(capsys.readouterr().out)["versions"]
    return versions


def test_under_the_recorded_settings_no_version_differs(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = asked(home, tmp_path, capsys, 'name = "job"\nrounds = 2\n')
    assert [version["distance"] for version in versions] == [0, 0, 0]
    assert [version["cosine"] for version in versions[1:]] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ('leave_out = ["d2"]', [3 / 3, 1 / 3, 2 / 3, 0]),
        ('weights = "equal"', [-1 / 3, 1 / 3, 1 / 3, 0]),
        ("update_norm_max = 2.0", [3 / 3, 1 / 3, 2 / 3, 0]),
        ("clip_norm = 1.5", [(3 - 1.5) / 4, 1 / 4, 2 / 4, 0]),
        ("server = { normalised = true }", [0, 1 / 4, 2 / 4, 0]),
    ],
)
def test_other_settings_part_the_models_by_what_they_change(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, step: list[float]
) -> None:
    recorded = np.array([0, 1 / 4, 2 / 4, 0])
    distance = float(np.linalg.norm(np.array(step) - recorded))
    versions = asked(home, tmp_path, capsys, text)
    assert [v["distance"] for v in versions] == pytest.approx([0, distance, distance], rel=1e-6)
    assert [v["drift"] for v in versions] == pytest.approx([0, distance, 2 * distance], rel=1e-6)
    assert versions[1]["relative"] == pytest.approx(distance / np.linalg.norm(recorded), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "told", "status"),
    [
        ("rounds = 9", "rounds = 9 is not what job job ran with", 2),
        ("[local]\nepochs = 9", "a recording can't tell what would have come of it", 2),
        ("wieghts = 1", "unknown field wieghts", 2),
        ('leave_out = ["nobody"]', "knows no device nobody", 1),
    ],
)
def test_what_a_recording_cannot_tell_is_refused_by_name(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str, status: int
) -> None:
    settings = tmp_path / "job.toml"
    settings.write_text(text)
    assert main(["replay", str(home), "--what-if", str(settings)]) == status
    assert told in capsys.readouterr().err


def test_blame_ranks_first_who_pulled_against_the_others(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["replay", str(home), "--blame", "--round", "1", "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert devices[0]["device"] == "d2"
    assert devices[0]["cosine"] == pytest.approx(-3 / np.linalg.norm([3, 1, 2]), rel=1e-6)
    without = np.array([3 / 3, 1 / 3, 2 / 3, 0])
    assert devices[0]["change"] == pytest.approx(np.linalg.norm(without - [0, 1 / 4, 2 / 4, 0]), rel=1e-6)


def test_a_model_that_was_altered_is_told_in_one_line_with_the_remedy(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns("*.sock"))
    for model in copy.glob("models/job/*.model"):
        model.write_bytes(model.read_bytes()[:-1] + b"?")
    for command in (
        ["models", "export", "job", str(tmp_path / "out.safetensors")],
        ["journal", "export", str(tmp_path / "out"), "--rekey"],
    ):
        assert main([*command, "--dir", str(copy)]) == 1
        told = capsys.readouterr().err
        assert ".model was altered" in told
        assert "restore it from a backup" in told
