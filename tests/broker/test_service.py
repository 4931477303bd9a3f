"""Signals end a service cleanly, and systemd hears about it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker import service
from broker.worker import with_our_packages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_cancels_the_service_and_waits_for_its_cleanup(number: signal.Signals) -> None:
    seen: list[str] = []

    async def serve() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    await service.run(serve, environment={})
    assert seen == ["cleaned up"]


async def test_what_the_service_raises_is_raised_as_it_was() -> None:
    async def fails() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.Event().wait())
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        await service.run(fails, environment={})


async def test_a_service_that_ends_by_itself_ends_the_run() -> None:
    async def serve() -> None:
        await asyncio.sleep(0)

    await service.run(serve, environment={})


async def test_systemd_is_told_that_the_service_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)

        async def serve() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

        environment = {service.NOTIFY_SOCKET: str(tmp_path / "notify")}
        service.notify("READY=1", environment)
        await service.run(serve, environment=environment)
        assert [systemd.recv(64), systemd.recv(64)] == [b"READY=1", b"STOPPING=1"]


def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    service.notify("READY=1", {service.NOTIFY_SOCKET: str(tmp_path / "gone")})
    service.notify("READY=1", {})


def test_a_cleanup_that_does_not_end_ends_the_process() -> None:
    script = """
import asyncio, os, signal
from broker import service

async def serve():
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

asyncio.run(service.run(serve, stop_deadline_s=0.1))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=with_our_packages(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == service.STOPPED_TOO_LATE
    assert "the clean end took longer than 0.1 s" in done.stderr


SLOW = """
import asyncio, sys
from broker import service

async def serve():
    print("up", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print("stopping", flush=True)
        await asyncio.sleep(float(sys.argv[1]))
        print("clean", flush=True)

asyncio.run(service.run(serve))
"""


@pytest.mark.parametrize(
    ("cleanup_s", "gap_s", "status", "end"), [(1.5, 0.0, 0, "clean"), (60.0, 1.2, 1, "stopping")]
)
def test_a_second_signal_ends_at_once_but_not_one_that_comes_with_the_first(
    cleanup_s: float, gap_s: float, status: int, end: str
) -> None:
    argv = [sys.executable, "-c", SLOW, str(cleanup_s)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.stdout.readline() == "stopping\n"
        time.sleep(gap_s)
        process.terminate()
        rest = process.stdout.read().split()
        assert process.wait(30) == status
    assert ["stopping", *rest][-1] == end
