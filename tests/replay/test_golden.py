"""What any release wrote verifies and replays in this one, and the next one's golden journal can be made."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest

from coordinator.facts import AnyFact
from coordinator.inputs import Recorded
from coordinator.keystore import load_identity
from coordinator.recovery import open_recovered
from coordinator.rekey import ExportRefused
from coordinator.rekey.export import export
from schemas.events import FromCoordinator, FromDevice
from tests.replay.golden import BYTES_MAX, EXPECTED, FORMS, HERE, kinds, make, pack, told
from tests.replay.history import record, unsynced
from tests.replay.test_export import CONFIG

GOLDEN: Final = sorted(HERE.glob("*.zip"))
NOT_COVERED: Final[dict[str, str]] = {}
"""Kinds of facts, inputs and messages that the history has none of, and why."""


def tags(kind: str, union: Any) -> set[str]:
    return {f"{kind} {one.__struct_config__.tag}" for one in union.__args__}


@pytest.mark.parametrize("archive", GOLDEN, ids=lambda path: path.stem)
def test_what_a_release_wrote_verifies_and_replays(archive: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(archive).extractall(tmp_path)
    expected = json.loads((tmp_path / EXPECTED).read_text())
    assert {form: told(unsynced(), tmp_path / form) for form in FORMS} == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("archive", GOLDEN, ids=lambda path: path.stem)
def test_a_coordinator_recovers_what_a_release_wrote(archive: Path, form: str, tmp_path: Path) -> None:
    zipfile.ZipFile(archive).extractall(tmp_path)
    files, home = unsynced().files, tmp_path / form
    journal, recovered = open_recovered(files, home, load_identity(files, home).federation)
    journal.close()
    jobs = {name: len(job.versions) for name, job in recovered.state.jobs.items() if job.versions}
    assert jobs == {"job-1": 7, "job-2": 1}
    assert sorted(recovered.state.devices) == ["device-1", "device-2", "device-3"]


def test_there_is_one_at_least() -> None:
    assert GOLDEN


def test_the_history_holds_every_kind_of_fact_input_and_message(tmp_path: Path) -> None:
    wanted = tags("fact", AnyFact) | tags("came", Recorded | FromDevice) | tags("told", FromCoordinator)
    found = kinds(unsynced(), record(tmp_path / "home"))
    assert wanted - found == set(NOT_COVERED), "play it in tests/replay/history.py, or say why not"


def test_the_tool_makes_the_next_one_which_is_small_and_never_replaced(tmp_path: Path) -> None:
    folder, target = tmp_path / "golden", tmp_path / "next.zip"
    folder.mkdir()
    make(folder)
    expected = json.loads((folder / EXPECTED).read_text())
    assert expected["whole"]["segments"] > 1
    assert expected["whole"]["snapshots"] > 0
    assert expected["pruned"]["pruned"]["job-1"] > 0
    pack(folder, target)
    assert target.stat().st_size <= BYTES_MAX
    with pytest.raises(FileExistsError):
        pack(folder, target)
    with pytest.raises(ExportRefused, match="what was pruned is needed"):
        export(unsynced(), folder / "pruned", tmp_path / "told", CONFIG)
