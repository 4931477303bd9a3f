"""Both programs as systemd runs them: they say when they are ready, and end when they are told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.system import system_ports
from broker.worker import with_our_packages
from coordinator.cli.main import main
from coordinator.config import load_config
from coordinator.connection import credentials
from coordinator.keystore import load_identity
from tests.brokers import free_ports
from tests.live.fleet import AGENT, COORDINATOR, Fleet

pytestmark = [pytest.mark.live]

PATIENCE_S = 60.0


@contextmanager
def notified(program: Sequence[str], folder: Path, **environment: str) -> Iterator[tuple[socket.socket, int]]:
    """A program under a stand-in of systemd: the socket that it tells its news to, and its process."""
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news:
        news.settimeout(PATIENCE_S)
        news.bind(str(address))
        process = subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            env={**with_our_packages(os.environ), "NOTIFY_SOCKET": str(address), **environment},
        )
        try:
            yield news, process.pid
            process.send_signal(signal.SIGTERM)
            assert news.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()


def asked(directory: Path, op: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "coordinator.cli", op, "--dir", str(directory), "--json"],
        env=with_our_packages(os.environ),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    return done.stdout


def test_a_coordinator_is_ready_before_its_broker_is_there_and_says_what_it_waits_for(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (port,) = free_ports(1)
    assert main(["init", "--dir", str(home), "--broker", f"mqtt://127.0.0.1:{port}"]) == 0
    with notified([*COORDINATOR, "serve", "--dir", str(home)], tmp_path) as (news, _):
        assert news.recv(100) == b"READY=1"
        problem = json.loads(asked(home, "status"))["broker_problem"]
        assert f"127.0.0.1:{port}" in problem


def test_an_agent_is_ready_while_its_broker_is_away(tmp_path: Path) -> None:
    with Fleet(tmp_path, 1) as fleet:
        fleet.stop("coordinator")  # and the embedded broker with it
        agent = fleet.agent_dir("device-1")
        with notified([*AGENT, "run", "--dir", str(agent)], tmp_path) as (news, pid):
            assert news.recv(100) == b"READY=1"
            # systemd listens to the process that it started alone.
            assert (agent / "lock").read_text().strip() == str(pid)


def test_systemds_credential_goes_before_the_password_in_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, secrets, ports = tmp_path / "home", tmp_path / "secrets", system_ports()
    assert main(["init", "--dir", str(home), "--broker", "mqtt://coordinator:old@127.0.0.1:1883"]) == 0
    config, identity = load_config(ports.files, home, {}), load_identity(ports.files, home)
    secrets.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secrets))
    assert credentials(home, config, identity, ports).password == "old"
    (secrets / "broker.password").write_text("new\n")
    assert credentials(home, config, identity, ports).password == "new"
