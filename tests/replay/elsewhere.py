"""Replays the same recordings in other surroundings, and compares every version's digest.

``python -m tests.replay.elsewhere [--python python3.12]… DIR…`` does it in processes of this Python with
other hash seeds, one and two threads, and the processor's features masked; and with each Python that is
named, in an environment that is made for it: fedbus from its wheel, for coordinators, without torch. Each
switch is looked at in the process itself. Exit status 1 if a digest differs, or a switch has no effect.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.plugin.test_plugin import ROOT, build_wheel

PROGRAM: Final = Path(__file__).with_name("digests.py")
SWITCHES: Final = ("PYTHONHASHSEED", "NPY_DISABLE_CPU_FEATURES", "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS")
CORES: Final = ("ARMV8", "CORTEXA57") if platform.machine() == "aarch64" else ("Nehalem", "Sandybridge")
"""Old processors, as OpenBLAS calls them."""
Told = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where to replay."""

    name: str
    python: Path = Path(sys.executable)
    environment: dict[str, str] = field(default_factory=dict)
    packages: str = str(ROOT)  # where fedbus is


def replay_at(place: Place, directories: Sequence[Path]) -> Told:
    """What `tests.replay.digests` says there. Raises subprocess.CalledProcessError."""
    inherited = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment = inherited | {"PYTHONPATH": place.packages} | place.environment
    done = subprocess.run(
        [str(place.python), "-P", str(PROGRAM), *map(str, directories)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: Told = json.loads(done.stdout)
    return told


def places(features: Sequence[str]) -> list[Place]:
    """Processes of this Python; ``features`` are those of the processor that can be masked."""
    found = [Place(f"hash seed {seed}", environment={"PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    found += [Place(f"{n} threads", environment={"OPENBLAS_NUM_THREADS": n}) for n in ("1", "2")]
    found += [Place(f"a {core}", environment={"OPENBLAS_CORETYPE": core}) for core in CORES]
    if features:
        masked = {"NPY_DISABLE_CPU_FEATURES": " ".join(features), "OPENBLAS_CORETYPE": CORES[0]}
        found.append(Place("all features masked", environment=masked))
    return found


def without_effect(here: Told, there: Told, environment: Mapping[str, str]) -> list[str]:
    """The switches in ``environment`` that changed nothing ``there``; ``here`` is without them."""
    (blas,) = there["blas"]
    masked = set(environment.get("NPY_DISABLE_CPU_FEATURES", "").split())
    in_effect = {
        "PYTHONHASHSEED": there["hash"] != here["hash"],
        "NPY_DISABLE_CPU_FEATURES": masked <= set(here["features"]) - set(there["features"]),
        "OPENBLAS_CORETYPE": blas["core"].upper() == environment.get("OPENBLAS_CORETYPE", "").upper(),
        "OPENBLAS_NUM_THREADS": blas["threads"] == int(environment.get("OPENBLAS_NUM_THREADS", 0)),
    }
    return [name for name in environment if not in_effect[name]]


def install(python: str, folder: Path) -> Place:
    """fedbus for coordinators, from a wheel that is built here, in an environment in ``folder``."""
    wheel, environment = build_wheel(folder), folder / "environment"
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    program, constraints = environment / "bin" / "python", str(ROOT / "constraints.txt")
    pip = [str(program), "-m", "pip", "install", "--quiet", "-c", constraints]
    subprocess.run([*pip, f"{wheel}[coordinator]", "threadpoolctl"], check=True)
    return Place(python, program, packages="")


def compare(directories: Sequence[Path], pythons: Sequence[str]) -> list[str]:
    """Print a line for each place; what was found wrong."""
    here = replay_at(Place("here"), directories)
    wrong = [f"{name} differs from its record" for name, one in here["replays"].items() if not one["equal"]]
    _tell("here", here)
    with TemporaryDirectory(prefix="fedbus-elsewhere-") as name:
        others = [install(python, Path(name) / str(number)) for number, python in enumerate(pythons)]
        for place in [*places(here["features"]), *others]:
            there = replay_at(place, directories)
            _tell(place.name, there)
            wrong += [f"{place.name}: other digests"] if there["replays"] != here["replays"] else []
            wrong += [f"{place.name}: torch is loaded"] if there["torch"] else []
            wrong += [
                f"{place.name}: {one} has no effect" for one in without_effect(here, there, place.environment)
            ]
    return wrong


def _tell(name: str, told: Told) -> None:
    versions = sum(len(of) for one in told["replays"].values() for of in one["versions"].values())
    (blas,) = told["blas"]
    line = {"python": told["python"], "versions": versions, "features": told["features"]} | blas
    sys.stdout.write(f"{name}: {json.dumps(line)}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay recordings in other surroundings.")
    parser.add_argument("--python", action="append", default=[], help="Another Python, as python3.12.")
    parser.add_argument("directory", nargs="+", type=Path)
    options = parser.parse_args()
    wrong = compare([path.resolve() for path in options.directory], options.python)
    sys.stdout.write("".join(f"{one}\n" for one in wrong) or "equal digests everywhere\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
