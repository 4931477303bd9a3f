"""Is the simulation worth its time? Bugs of the kind that it is there for, as patches, each to be caught.

A patch is applied to a copy of the sources, and the copy's seeds are played until one fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PATCHES: Final = sorted((ROOT / "tests" / "sim" / "mutants").glob("*.patch"))
SOURCES: Final = ("broker", "compressors", "coordinator", "edge_agent", "schemas", "tests")
SEEDS_MAX: Final = 300
FAILED: Final = re.compile(r"^seed (\d+) FAILED: (.*)$", re.MULTILINE)


def fits(patch: Path, tree: Path = ROOT) -> str:
    """Why a patch can't be applied; empty if it can."""
    checked = _git("apply", "--check", str(patch), tree=tree)
    return checked.stderr.strip() if checked.returncode else ""


def caught(patch: Path, jobs: int) -> tuple[int, str]:
    """The first seed that fails under a patch, and why; -1 if none of `SEEDS_MAX` does."""
    with tempfile.TemporaryDirectory(prefix="fedbus-mutant-") as folder:
        tree = Path(folder)
        for name in SOURCES:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        applied = _git("apply", str(patch), tree=tree)
        if applied.returncode:
            raise RuntimeError(f"{patch.name} does not fit any more: {applied.stderr.strip()}")
        command = [sys.executable, "-m", "tests.sim", f"0:{SEEDS_MAX}", "--first", "--jobs", str(jobs)]
        path = os.pathsep.join((str(tree), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
        environment = os.environ | {"PYTHONPATH": path}
        played = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, check=False
        )
    found = FAILED.search(played.stdout)
    if found is None and "seeds, 0 failed" not in played.stdout:
        raise RuntimeError(f"{patch.name}: {played.stderr[-2_000:]}")
    return (int(found[1]), found[2]) if found else (-1, "")


def all_mutants(jobs: int) -> Iterator[str]:
    """A line for each; those not caught begin with "NOT"."""
    for patch in PATCHES:
        began_s = time.monotonic()
        seed, why = caught(patch, jobs)
        if seed < 0:
            yield f"NOT caught within {SEEDS_MAX} seeds: {patch.stem}"
        else:
            yield f"{patch.stem}: caught by seed {seed} in {time.monotonic() - began_s:.0f} s: {why[:160]}"


def _git(*args: str, tree: Path) -> subprocess.CompletedProcess[str]:
    # Not as a part of a repository around it: paths are those of the tree.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)}
    command = ["git", *args]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
