"""A federation as an operator makes it, by the command line, beside a broker of the operator's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from broker.system import system_ports
from broker.worker import with_our_packages
from coordinator.config import PASSWORD
from coordinator.keystore import Identity, load_identity
from schemas.enrolment import Token, token_from_text
from schemas.ids import COORDINATOR, broker_user
from tests.brokers import MOSQUITTO, answers, require, reread, until

PATIENCE_S = 60.0


class SystemMosquitto:
    """Mosquitto with the configuration that Debian ships, in a folder of its own: `include` links files as
    the operator is told to. ``first`` goes before everything; ``user`` is as whom it runs: most folders of
    tests are for root alone."""

    def __init__(self, base: Path, port: int, first: str = "", user: str = "root") -> None:
        self.port = port
        self.base = base
        self.log = base / "mosquitto.log"
        self.pid_file = base / "mosquitto.pid"
        self._first = first
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    def include(self, configuration: Path) -> None:
        folder = self.base / "conf.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"fedbus-{len(list(folder.iterdir()))}.conf").symlink_to(configuration)

    def __enter__(self) -> Self:
        require("mosquitto")
        (self.base / "conf.d").mkdir(parents=True, exist_ok=True)
        path = self.base / "mosquitto.conf"
        lines = (
            self._first,
            f"user {self._user}",
            f"pid_file {self.pid_file}",
            "persistence true",
            f"persistence_location {self.base}/",
            "log_dest stderr",
            f"include_dir {self.base / 'conf.d'}",
        )
        path.write_text("\n".join(line for line in lines if line) + "\n")
        if self._user != "root":
            shutil.chown(self.base, self._user)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [MOSQUITTO, "-c", str(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(self._up, f"mosquitto answers; see {self.log}", 10)
        return self

    def _up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"mosquitto ended: {self.log.read_text()}")
        return answers(self.port) and self.pid_file.exists() and self.pid_file.read_text().strip() != ""

    def reload(self) -> None:
        """What ``systemctl reload mosquitto`` does, until it is heard."""
        assert self._process is not None
        reread(self._process, self.log)

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(PATIENCE_S)


class Installation:
    """A federation in a directory of its own. Entering it serves; leaving it ends that."""

    def __init__(self, directory: Path, broker: str, *options: str) -> None:
        self.directory = directory
        self.log = directory.with_suffix(".log")
        self._serving: subprocess.Popen[bytes] | None = None
        self.command("init", "--broker", broker, *options)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``fedbus-coordinator``; its end may be good or bad."""
        return self._call("coordinator.cli", *arguments, "--dir", str(self.directory))

    def command(self, *arguments: str) -> Any:
        """What ``fedbus-coordinator`` answers with ``--json``."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: str) -> str:
        """The one line with which it refuses."""
        done = self.run(*arguments)
        assert done.returncode in (1, 2), done.stdout
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def enroll(self, device: str, token: Token | str, *options: str) -> subprocess.CompletedProcess[str]:
        """``fedbus-agent enroll`` with a directory for this device."""
        text = token if isinstance(token, str) else ""
        home = self.directory.with_name(f"{self.directory.name}-{device}")
        return self._call("edge_agent.cli", "enroll", text, "--dir", str(home), *options)

    def _call(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", module, *arguments],
            env=with_our_packages(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._serving = subprocess.Popen(
                [sys.executable, "-P", "-m", "coordinator.cli", "serve", "--dir", str(self.directory)],
                env=with_our_packages(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, f"the coordinator is connected; see {self.log}", PATIENCE_S)
        return self

    @property
    def pid(self) -> int:
        """Of the coordinator that serves."""
        assert self._serving is not None
        return self._serving.pid

    def _answers(self) -> bool:
        assert self._serving is not None
        if self._serving.poll() is not None:
            raise RuntimeError(f"the coordinator ended: {self.log.read_text()}")
        done = self.run("status", "--json")
        return done.returncode == 0 and json.loads(done.stdout)["broker_problem"] == ""

    def __exit__(self, *_: object) -> None:
        assert self._serving is not None
        self._serving.terminate()
        self._serving.wait(PATIENCE_S)

    def invite(self, device: str) -> tuple[str, Token, list[str]]:
        """The token, as text and read, and the notes for the operator."""
        made = self.command("invite", device)
        return made["token"], token_from_text(made["token"]), made["notes"]

    @property
    def identity(self) -> Identity:
        return load_identity(system_ports().files, self.directory)

    @property
    def login(self) -> tuple[str, str]:
        """The coordinator's user and password at the broker."""
        password = (self.directory / PASSWORD).read_text().strip()
        return broker_user(self.identity.federation, COORDINATOR), password
