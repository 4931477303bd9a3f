"""The sections of docs/replay.md that need a broker, typed as they stand: a tap beside a federation of real
processes, its export played to a coordinator and to an agent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import pytest

from broker.worker import with_our_packages
from tests.brokers import Mosquitto
from tests.live.fleet import Fleet

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

PAGE: Final = (Path(__file__).parents[2] / "docs" / "replay.md").read_text(encoding="utf-8")
GOES_ON: Final = (" serve ", " run ", " record ")
"""Commands that last until they are ended."""
ROUNDS: Final = 2
DEVICES: Final = 3
TAP, TO_COORDINATOR, TO_AGENT = SECTIONS = (
    "Record from a live bus",
    "Its devices to a coordinator",
    "Its requests to an agent",
)


def commands(section: str) -> list[str]:
    """What is typed in a section, up to the next heading."""
    text = re.split(r"^##", PAGE.split(f"# {section}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


Said = dict[str, str]
"""By command, as the page has it: what it printed."""


class Shell:
    """Types the commands of a section in ``folder``, with other words in place of the page's. What goes on is
    ended with the context, and must end well."""

    def __init__(self, folder: Path, section: str, words: dict[str, str]) -> None:
        programs = Path(sys.executable).parent
        self._folder = folder
        self._environment = {**with_our_packages(os.environ), "PATH": f"{programs}:{os.environ['PATH']}"}
        self.lines = commands(section)
        assert self.lines
        self._words = words
        self._running: list[tuple[str, subprocess.Popen[str]]] = []
        self.said: Said = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def type_next(self) -> str:
        """The next command, which succeeds or goes on."""
        line = command = self.lines.pop(0)
        for word, ours in self._words.items():
            command = re.sub(rf"(?<![\w./-]){re.escape(word)}(?![\w-])", ours, command)
        goes_on = any(word in command for word in GOES_ON)
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}" if goes_on else command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if goes_on:
            self._running.append((line, process))
        else:
            self._ended(line, process)
        return line

    def type_all(self) -> None:
        while self.lines:
            self.type_next()

    def end(self) -> None:
        """End what goes on."""
        for line, process in reversed(self._running):
            process.terminate()
            self._ended(line, process)
        self._running.clear()

    def _ended(self, line: str, process: subprocess.Popen[str]) -> None:
        self.said[line] = process.communicate(timeout=120)[0]
        assert process.returncode == 0, f"{line}: {self.said[line]}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("walk") / "fleet", DEVICES) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def tapped(fleet: Fleet) -> Said:
    """The tap's section, typed while two rounds were played."""
    words = {"DIR": str(fleet.home), "press-07": "device-1", "1234": "9"}
    with Shell(fleet.directory, TAP, words) as shell:
        while " record " not in shell.type_next():
            pass
        fleet.run_all()
        fleet.submit(rounds=ROUNDS)
        fleet.until(fleet.finished, 120.0)
        shell.end()
        shell.type_all()
    return shell.said


@pytest.fixture(scope="module")
def played(fleet: Fleet, tapped: Said) -> Said:
    """The other sections, typed at a broker of their own."""
    with Mosquitto(fleet.directory / "broker") as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        words = {"PRODUCTION": str(fleet.home), "mqtt://127.0.0.1:1883": url}
        with Shell(fleet.directory, TO_COORDINATOR, words) as coordinator:
            coordinator.type_all()
        with Shell(fleet.directory, TO_AGENT, words) as agent:
            agent.type_next()
            settings = (fleet.agent_dir("device-3") / "agent.toml").read_text()
            (fleet.directory / "AGENT" / "agent.toml").write_text(f'broker = "{url}"\n{settings}')
            agent.type_all()
    return coordinator.said | agent.said


def said(typed: Said, part: str) -> str:
    """What the one command with this in it said."""
    (found,) = [text for line, text in typed.items() if part in line]
    return found


def test_every_command_of_these_sections_is_typed(tapped: Said, played: Said) -> None:
    assert sorted([*tapped, *played]) == sorted(line for section in SECTIONS for line in commands(section))


def test_a_tap_records_what_passes_and_finds_it_as_it_was_signed(tapped: Said) -> None:
    recorded = said(tapped, " record ")
    up, down = map(int, re.findall(r"recorded (\d+) messages from devices and (\d+) to them", recorded)[0])
    assert up >= 2 * DEVICES * ROUNDS, "each device accepts, and sends its update"
    assert down >= 3 * DEVICES * ROUNDS, "request, receipt, verdict"
    assert "; 0 gaps" in recorded
    assert "device-1" in said(tapped, " ls ")
    assert "device-2" not in said(tapped, " ls ")
    assert "signature: " in said(tapped, " show ")
    assert f"{up + down} messages, 0 gaps" in said(tapped, " verify ")
    assert "not from whom they claim" not in said(tapped, " verify ")


def test_a_coordinator_to_which_an_export_is_played_comes_to_the_recorded_digest(played: Said) -> None:
    told = said(played, "--speed 50")
    assert f"accepted {DEVICES * ROUNDS}, rejected 0, declined 0" in told
    assert ", the recorded digest" in told


def test_an_agent_that_is_asked_again_answers_the_same(played: Said) -> None:
    told = said(played, "--device device-3")
    assert f"accepted {ROUNDS}, rejected 0, declined 0" in told
    assert "differ" not in told
