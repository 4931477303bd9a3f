"""A federation in this process that answers the command line, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.system import system_ports
from coordinator import control
from coordinator.cli.main import main
from coordinator.config import FILE, Config, config_text
from tests.standin import Federation, federation


@asynccontextmanager
async def served(directory: Path, count: int = 10) -> AsyncIterator[Federation]:
    """A coordinator with stand-ins of ``count`` parameters, whose control socket is open."""
    async with federation(directory, system_ports(), count) as fed, asyncio.TaskGroup() as tasks:
        (directory / FILE).write_text(config_text(Config(broker="memory:0")))
        door = tasks.create_task(control.serve(directory, fed.coordinator.commands.handle), name="door")
        await fed.until((directory / control.SOCKET).exists)
        yield fed
        door.cancel()


async def answer(fed: Federation, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints."""
    capsys.readouterr()  # log lines
    assert await fed.ports.offload.run(main, [*arguments, "--dir", str(fed.directory)]) == 0
    return capsys.readouterr().out
