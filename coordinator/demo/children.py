"""The demonstration's processes: started, started again when they die, and ended, as systemd would do it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.ports import Ports, Process
from broker.worker import with_our_packages
from coordinator.cli.output import Failed
from coordinator.demo.child import wrapped
from schemas.limits import STOP_S

LIVED_S: Final = 5.0  # whoever lived longer did not fail to start
FAILED_STARTS_MAX: Final = 5
BY_SOMEBODY: Final = (signal.SIGKILL, signal.SIGTERM)  # its death says nothing about the program
AGAIN_FIRST_S: Final = 0.2
AGAIN_CAP_S: Final = 5.0


def module(name: str, *arguments: str) -> list[str]:
    """The command line of one of our programs, whatever the working directory holds."""
    return [sys.executable, "-P", "-m", name, *arguments]


class Children:
    """Starts programs as children; ``tell`` gets a line for people when one died."""

    def __init__(self, ports: Ports, logs: Path, tell: Callable[[str], None]) -> None:
        self._ports = ports
        self._logs = logs
        self._tell = tell
        self.pids: dict[str, int] = {}

    async def once(self, name: str, argv: Sequence[str]) -> None:
        """Run a program to its end. Raises `Failed` with its last words unless it ends with status 0."""
        process = await self._start(name, argv)
        try:
            status = await process.wait()
        finally:
            process.kill()
        if status != 0:
            raise Failed(f"{name} {ending(status)}: {self._last_line(name)}")

    async def keep(self, name: str, argv: Sequence[str]) -> None:
        """Run a program, again and again, until cancelled; then end it with SIGTERM, or SIGKILL if late.

        Raises `Failed` when it does not stay up.
        """
        clock = self._ports.clock
        failed_starts, again_s = 0, AGAIN_FIRST_S
        while True:
            started_s = clock.monotonic_s()
            process = await self._start(name, argv)
            try:
                status = await process.wait()
            except asyncio.CancelledError:
                await self._end(process)
                raise
            finally:
                process.kill()
                self.pids.pop(name, None)
            if clock.monotonic_s() - started_s > LIVED_S or -status in BY_SOMEBODY:
                failed_starts, again_s = 0, AGAIN_FIRST_S
            else:
                failed_starts += 1
            if failed_starts == FAILED_STARTS_MAX:
                raise Failed(f"{name} does not stay up: {self._last_line(name)}")
            self._tell(f"{name} {ending(status)}; it is started again")
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, AGAIN_CAP_S)

    async def _start(self, name: str, argv: Sequence[str]) -> Process:
        environment = with_our_packages(os.environ)
        log = self._logs / f"{name}.log"
        process = await self._ports.spawn.start(wrapped(argv), env=environment, stderr=log)
        self.pids[name] = process.pid
        return process

    async def _end(self, process: Process) -> None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()

    def _last_line(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        lines = self._ports.files.read(path).decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"{path} is empty")


def ending(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
