"""The resident as a process: one per directory, stopped by SIGTERM, looked at from beside."""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.system import system_ports
from broker.worker import with_our_packages
from edge_agent import identity
from tests.edge_agent.federation import Federation

NOBODY = "mqtt://127.0.0.1:9"  # the discard port: nobody listens


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "edge_agent.cli", *arguments]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    identity.save(system_ports().files, tmp_path, replace(Federation().member(), urls=[NOBODY]))
    return tmp_path


@pytest.fixture
def running(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent, once it has its directory."""
    process = subprocess.Popen(
        program("run", "--dir", str(directory)),
        env=with_our_packages(os.environ),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "press-07" in process.stderr.readline()
    yield process
    process.kill()
    process.communicate()


def finished(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(*arguments),
        env=with_our_packages(os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_sigterm_ends_it_cleanly(running: subprocess.Popen[str]) -> None:
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=30) == 0


def test_a_second_agent_on_the_directory_is_told_the_first_ones_pid(
    running: subprocess.Popen[str], directory: Path
) -> None:
    second = finished("run", "--dir", str(directory))
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert f"process {running.pid}" in line
    assert "another directory" in line


def test_its_state_can_be_looked_at_while_it_runs(running: subprocess.Popen[str], directory: Path) -> None:
    shown = finished("status", "--json", "--dir", str(directory))
    assert (shown.returncode, shown.stderr) == (0, "")
    state = json.loads(shown.stdout)
    assert (state["device"], state["entity"], state["member"]) == ("press-07", "works", "active")
    assert state["running_pid"] == running.pid
    assert (state["connected"], state["requests"], state["outbox"], state["verdict"]) == ("", [], [], None)
    assert "press-07" in finished("status", "--dir", str(directory)).stdout


class RefusesEveryLogin(socketserver.StreamRequestHandler):
    """An MQTT broker's answer to a wrong password: CONNACK 5."""

    def handle(self) -> None:
        self.rfile.read(1)
        self.wfile.write(b"\x20\x02\x00\x05")
        self.connection.shutdown(socket.SHUT_WR)
        self.rfile.read()


def test_a_login_that_the_broker_refuses_is_told_as_a_likely_revocation(directory: Path) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), RefusesEveryLogin) as broker:
        serving = threading.Thread(target=broker.serve_forever)
        serving.start()
        try:
            url = f"mqtt://127.0.0.1:{broker.server_address[1]}"
            identity.save(system_ports().files, directory, replace(Federation().member(), urls=[url]))
            done = finished("run", "--dir", str(directory))
        finally:
            broker.shutdown()
            serving.join()
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    for words in (
        "device press-07",
        "probably revoked",
        "fedbus-coordinator invite press-07",
        "new directory",
    ):
        assert words in line


def test_a_broker_on_another_machine_over_amqp_is_refused_with_what_to_write(directory: Path) -> None:
    own = replace(Federation().member(), urls=["amqps://hub.example.org"])
    identity.save(system_ports().files, directory, own)
    done = finished("run", "--dir", str(directory))
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    for words in ("amqps://hub.example.org: not for a device", "mqtt(s)://host:port"):
        assert words in line


def test_wrong_usage_has_its_own_exit_status() -> None:
    assert finished("fly").returncode == 2
    assert finished("status", "--dir").returncode == 2


@pytest.mark.parametrize("option", [("--wait-s", "0", "-"), ("--token-file", "gone")])
def test_an_enrolment_that_cannot_be_as_typed_is_wrong_usage_in_one_line(
    tmp_path: Path, option: tuple[str, ...]
) -> None:
    done = finished("enroll", *option, "--dir", str(tmp_path / "device"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("fedbus-agent: ")
    assert option[1] in line
    assert not (tmp_path / "device").exists()


def test_keys_are_for_their_owner_only(directory: Path) -> None:
    assert (directory / identity.FILE).stat().st_mode & 0o777 == 0o600
