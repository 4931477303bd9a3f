"""Where the command line's answers come from: the live coordinator, or its log when none serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.journal import Journal
from broker.system import system_ports
from coordinator import control, recovery
from coordinator.config import FILE, ConfigError
from coordinator.keystore import load_identity
from coordinator.state import State
from coordinator.tap.place import ONLY_A_TAP, is_tap

if TYPE_CHECKING:
    from sqlalchemy import Connection

Answer = Any


def ask(directory: Path, command: dict[str, Any]) -> Answer:
    """The live coordinator's answer. Raises `NotServing`, `CommandFailed`, `ConfigError` (wrong place)."""
    require_state_directory(directory)
    return asyncio.run(control.call(directory, command))


def look(directory: Path, command: dict[str, Any], from_log: Callable[[State], Answer]) -> Answer:
    """Like `ask`; when nobody serves, ``from_log`` answers from the recorded state, in the same form."""
    try:
        return ask(directory, command)
    except control.NotServing:
        # As it would have come over the socket: tuples are lists, names are strings.
        return json.loads(json.dumps(from_log(read_state(directory))))


def durable_entries(directory: Path) -> int | None:
    """How many entries the coordinator that serves has made durable; None when nobody serves."""
    try:
        return int(ask(directory, {"op": "status"})["journal_index"])
    except control.NotServing:
        return None


def read_state(directory: Path) -> State:
    """What the log says, beside a coordinator that writes. Raises `JournalError`, `KeysMissing`."""
    require_state_directory(directory)
    files = system_ports().files
    identity = load_identity(files, directory)
    journal, recovered = recovery.open_recovered(files, directory, identity.federation, read_only=True)
    journal.close()
    return recovered.state


def open_journal(directory: Path) -> Journal:
    """For reading, beside a coordinator that writes. Raises `JournalError`, `KeysMissing`."""
    require_state_directory(directory)
    files = system_ports().files
    identity = load_identity(files, directory)
    return Journal.open(files, directory / recovery.FOLDER, identity.federation, read_only=True)


@contextmanager
def open_records(directory: Path) -> Iterator[Connection]:
    """The tables of `coordinator.records`, as the log is now. Raises `JournalError`, `KeysMissing`."""
    from coordinator import records

    require_state_directory(directory)
    files = system_ports().files
    with records.reading(files, directory, load_identity(files, directory).federation) as tables:
        yield tables


def require_state_directory(directory: Path) -> None:
    """Raises `ConfigError` unless ``init`` was here."""
    if is_tap(system_ports().files, directory):
        raise ConfigError(f"{directory} {ONLY_A_TAP}")
    if not (directory / FILE).exists():
        raise ConfigError(
            f"{directory} is no coordinator's state directory ({FILE} is missing): "
            f"make one with `fedbus-coordinator init --dir {directory}`, or name another with --dir"
        )
