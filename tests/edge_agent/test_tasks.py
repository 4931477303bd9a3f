"""Finding installed tasks: by name, without importing the others, with a clear word when it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent import tasks
from edge_agent.tasks import TaskError
from edge_agent.tasks.vision import VisionTask

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed packages with entry points good, broken, absent, hollow, and one that two of them claim."""
    points = {
        "clinic": "good = edge_agent.tasks.vision:VisionTask\nbroken = clinic_broken:Task\n"
        "absent = clinic_absent:Task\nhollow = edge_agent.tasks:TaskError\ntwice = clinic:Task\n",
        "rival": "twice = rival:Task\n",
    }
    for name, text in points.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fedbus.tasks]\n{text}")
    (tmp_path / "clinic_broken.py").write_text("raise RuntimeError('no camera')\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("plug_in")
def test_an_installed_task_is_found_and_listing_imports_none() -> None:
    assert {"good", "broken", "absent", "hollow", "twice"} <= set(tasks.installed())
    assert tasks.installed() == sorted(tasks.installed())
    assert tasks.find("good") is VisionTask


@pytest.mark.usefixtures("plug_in")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none", "'none' is not installed on this device; installed: .*good"),
        ("broken", "cannot be imported: RuntimeError: no camera; repair or reinstall package clinic"),
        ("absent", "cannot be imported: ModuleNotFoundError"),
        ("hollow", "it lacks build, load, train, evaluate; correct package clinic"),
        ("twice", "installed more than once .* uninstall all but one of package clinic, package rival"),
    ],
)
def test_a_task_that_cannot_be_had_is_refused_with_the_remedy(name: str, text: str) -> None:
    with pytest.raises(TaskError, match=text):
        tasks.find(name)


@pytest.mark.usefixtures("plug_in")
def test_without_torch_no_task_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert tasks.installed() == []


def test_looking_for_tasks_imports_neither_torch_nor_numpy() -> None:
    check = "import sys; sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    code = f"from edge_agent import tasks; tasks.installed(); {check}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
