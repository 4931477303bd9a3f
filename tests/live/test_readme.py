"""README.md as a stranger follows it: its own blocks, run in a shell, with nothing but the paths changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from safetensors.torch import load_file

from coordinator import control

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS: Final = Path(sys.executable).parent
PATIENCE_S: Final = 120.0
SERVE: Final = "fedbus-coordinator serve"
RUN: Final = "fedbus-agent run"


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    """The fenced blocks of a section, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)


class Stranger:
    """Types what the page says. Commands that stay in the foreground get a terminal of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.site = directory / "site"  # where `pip install .` puts the stranger's package
        self.terminals: dict[str, subprocess.Popen[bytes]] = {}
        path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": str(self.site)}

    def local(self, text: str) -> str:
        return text.replace("/srv/", f"{self.directory}/")

    def type(self, block: str) -> str:
        """Run a block of shell commands; what it printed. Stops at the first command that fails."""
        lines = self.local(block).splitlines(keepends=True)
        staying = [line for line in lines if line.startswith((SERVE, RUN))]
        assert staying in ([], lines[-1:]), (
            "what stays in the foreground can only stand at the end of a block"
        )
        done = self.command(["sh", "-ec", "".join(lines[: len(lines) - len(staying)])])
        for line in staying:
            self.open_terminal(shlex.split(line, comments=True))
        return done

    def command(self, argv: list[str]) -> str:
        done = subprocess.run(
            argv,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{argv}: status {done.returncode}: {done.stderr}"
        return done.stdout

    def open_terminal(self, argv: list[str]) -> None:
        name = argv[0]
        with (self.directory / f"{name}.log").open("ab") as log:
            self.terminals[name] = subprocess.Popen(
                argv,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, name: str) -> int:
        """Ctrl-C in a terminal, as it were; the exit status."""
        process = self.terminals.pop(name)
        process.terminate()
        try:
            return process.wait(PATIENCE_S)
        finally:
            process.kill()

    def ask(self, op: str, **fields: str) -> Any:
        """What the coordinator answers; None while nobody serves."""
        with contextlib.suppress(control.NotServing, OSError):
            return asyncio.run(control.call(self.directory / "fed", {"op": op} | fields))
        return None

    def until(self, condition: Callable[[], object]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            ended = [name for name, process in self.terminals.items() if process.poll() is not None]
            assert ended == [], self.logs()
            assert time.monotonic() < end_s, f"waited in vain\n{self.logs()}"
            time.sleep(0.05)

    def until_finished(self, job: str) -> None:
        self.until(lambda: self.ask("job", job=job)["state"] not in ("preparing", "running"))
        view = self.ask("job", job=job)
        assert view["state"] == "finished", view["reason"]

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2_000:] for path in self.directory.glob("*.log"))

    def install(self, project: str, module: str) -> None:
        """What `pip install .` leaves behind, without a build and without touching this environment."""
        described = tomllib.loads(project)["project"]
        name, version = described["name"], described["version"]
        (self.site / name).mkdir(parents=True)
        (self.site / name / "task.py").write_text(module)
        info = self.site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = described["entry-points"]["fedbus.tasks"].items()
        lines = ["[fedbus.tasks]", *(f"{task} = {place}" for task, place in points)]
        (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    """At the end nothing that was started runs, the coordinator last: it ends its broker."""
    assert (PROGRAMS / "fedbus-agent").exists(), "install the project into this environment: make venv"
    stranger = Stranger(tmp_path)
    yield stranger
    for name in sorted(stranger.terminals):
        stranger.end(name)


def write_data(directory: Path) -> None:
    """Images whose class shows as a bright row, and measurements with a linear law."""
    random = np.random.default_rng(3)
    y = random.integers(0, 10, 240)
    x = random.integers(0, 60, (240, 28, 28)).astype(np.uint8)
    x[np.arange(240), 2 * y + 4] = 220
    np.savez(directory / "press-07.npz", x=x, y=y)
    measured = random.normal(size=(200, 8))
    np.savez(directory / "press-07-load.npz", x=measured, y=measured @ np.linspace(-1, 1, 8) + 0.5)


def test_the_page_takes_a_stranger_from_own_data_and_an_own_task_to_models(stranger: Stranger) -> None:
    write_data(stranger.directory)
    serve, enroll, submit, *export = blocks("Your own data", "sh")
    (project,), (module,) = blocks("Your own task", "toml"), blocks("Your own task", "python")
    stranger.install(project, module)
    stranger.type(serve)
    stranger.until(lambda: stranger.ask("status"))
    stranger.type(enroll)
    assert "job defects: " in stranger.type(submit)
    stranger.until_finished("defects")
    (listing,) = re.findall(r"`(fedbus-agent model list [^`]*)` says `finished`", section("Your own data"))
    stranger.until(lambda: "finished" in stranger.type(listing))
    for block in export:
        stranger.type(block)
    files = [stranger.directory / f"{name}.safetensors" for name in ("defects", "own")]
    assert files[0].read_bytes() == files[1].read_bytes()
    (loading,) = blocks("Your own data", "python")
    measure = (
        "import pathlib\n"
        "task = VisionTask({'shape': [28, 28], 'classes': 10})\n"
        "print(task.evaluate(model, task.load(pathlib.Path('press-07.npz')))['accuracy'])"
    )
    assert float(stranger.command([sys.executable, "-P", "-c", f"{loading}\n{measure}"])) > 0.9

    assert stranger.end("fedbus-agent") == 0
    for block in blocks("Your own task", "sh"):
        stranger.type(block)
    stranger.type(next(line for line in enroll.splitlines() if line.startswith(RUN)))
    stranger.until_finished("load")
    stranger.type("fedbus-coordinator models export load load.safetensors --dir fed")
    model = load_file(stranger.directory / "load.safetensors")
    assert model["weight"].shape == (1, 8)
    assert float(model["bias"]) == pytest.approx(0.5, abs=0.2)

    look_after_it(stranger)
    assert stranger.end("fedbus-coordinator") == 0


def look_after_it(stranger: Stranger) -> None:
    """Every whole command of "When something fails", on this federation."""
    commands = re.findall(r"`(fedbus-[^`]*DIR)`", section("When something fails"))
    assert len(commands) >= 2
    for command in commands:
        place = "press-07" if command.startswith("fedbus-agent") else "fed"
        assert stranger.type(command.replace("DIR", place)) != ""
