"""The resident: ``python -P -m edge_agent --dir DIRECTORY``, as ``fedbus-agent run`` starts it.

Exit status 0 after SIGTERM or Ctrl-C, 1 with one line that says why.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.origin import Shadowed, check_origin

if TYPE_CHECKING:
    from edge_agent.app import Agent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent of a directory until it is told to stop; the exit status."""
    parser = argparse.ArgumentParser(prog="python -P -m edge_agent", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="state directory of an enrolled device")
    parser.add_argument("--verbose", action="store_true", help="log more")
    arguments = parser.parse_args(argv)
    try:
        check_origin()
    except Shadowed as error:
        print(f"fedbus-agent: {error}", file=sys.stderr)  # noqa: T201  # before there is a log
        return 1
    return _serve(arguments.dir, verbose=arguments.verbose)


def _serve(directory: Path, *, verbose: bool) -> int:
    # Only now: check_origin looked at what these import.
    from broker.bus import BusError
    from broker.ports import LockHeld
    from broker.system import system_ports
    from edge_agent import config, identity, logs
    from edge_agent.app import Agent, RevokedHere
    from edge_agent.ledger import LedgerError
    from edge_agent.presence import Machine, bus_for

    ports = system_ports()
    try:
        own = identity.load(ports.files, directory)
        logs.configure(sys.stderr, own.device, verbose=verbose)
        settings = config.load(ports.files, directory, os.environ)
        with ports.lock.hold(directory / identity.LOCK_FILE):
            machine = Machine(
                len(os.sched_getaffinity(0)), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            )
            bus = bus_for(own, settings, ports)
            agent = Agent(directory, settings, ports, bus, own, machine=machine)
            asyncio.run(_until_told(agent))
    except LockHeld as error:
        return _failed(f"another agent runs on this directory: {error}")
    except (identity.IdentityError, config.ConfigError, LedgerError, RevokedHere, BusError) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{directory}: {error}; correct the cause (space, permissions) and start again")
    return 0


async def _until_told(agent: Agent) -> None:
    from edge_agent.failures import first_failure
    from schemas.limits import STOP_S

    loop = asyncio.get_running_loop()
    with first_failure():
        async with asyncio.TaskGroup() as group:
            running = group.create_task(agent.run(), name="agent")

            def stop() -> None:
                running.cancel()
                # A clean end is a courtesy: everything that matters is durable already.
                loop.call_later(STOP_S, os._exit, 1)

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop)


def _failed(text: str) -> int:
    print(f"fedbus-agent: {text}", file=sys.stderr)  # noqa: T201  # the one line for people
    return 1


if __name__ == "__main__":
    sys.exit(main())
