"""The pytest plugin in a project of somebody's own, which has fedbus from its wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from coordinator.testing import RECORDING, unpack
from tests.replay.golden import EXPECTED, HERE, told
from tests.replay.history import unsynced

ROOT: Final = Path(__file__).resolve().parents[2]
PROJECT: Final = Path(__file__).with_name("press_tests")
SOURCES: Final = ("broker", "compressors", "coordinator", "edge_agent", "schemas")


def build_wheel(folder: Path) -> Path:
    """A wheel of fedbus in ``folder``, built from these sources."""
    source = folder / "source"
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored, dirs_exist_ok=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(folder: Path) -> Path:
    """fedbus from a wheel that is built here; where it is. What it depends on is this Python's."""
    wheel, site = build_wheel(folder), folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, cwd=folder)
    return site


@pytest.mark.slow
def test_a_project_of_its_own_uses_the_plugin_of_the_wheel(tmp_path: Path) -> None:
    site, project = install(tmp_path), tmp_path / "project"
    shutil.copytree(PROJECT, project)
    (project / "check_recordings.py").rename(project / "test_recordings.py")
    unpack(RECORDING, project / "recordings" / "own")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"],
        cwd=project,
        env=environment | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_the_recording_that_comes_with_fedbus_is_the_newest_golden_one(tmp_path: Path) -> None:
    newest = max(HERE.glob("*.zip"), key=lambda path: [int(part) for part in path.stem.split(".")])
    expected = json.loads(zipfile.ZipFile(newest).read(EXPECTED))["whole"]
    assert told(unsynced(), unpack(RECORDING, tmp_path / "own")) == expected


def test_where_pytest_only_loads_the_plugin_nothing_else_is_loaded() -> None:
    script = "import coordinator.pytest_plugin, sys; print(*{'msgspec', 'nacl', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []
