"""The resident: ``python -P -m edge_agent --dir DIRECTORY``, as ``fedbus-agent run`` starts it.

Exit status 0 after SIGTERM or Ctrl-C; otherwise one line says why, with 1, or 2 if starting again won't help
before somebody did something about it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_agent.origin import Shadowed, check_origin

FAILED = 1
NO_USE = 2


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
    from broker import service
    from broker.bus import BusError, BusRefused
    from broker.ports import LockHeld
    from broker.system import system_ports
    from edge_agent import config, identity, logs
    from edge_agent.app import Agent, RevokedHere
    from edge_agent.ledger import LedgerError
    from edge_agent.lives import live
    from edge_agent.presence import Machine, bus_for
    from schemas.limits import STOP_S

    ports = system_ports()
    try:
        own = identity.load(ports.files, directory)
        logs.configure(sys.stderr, own.device, verbose=verbose)
        settings = config.load(ports.files, directory, os.environ)
        with ports.lock.hold(directory / identity.LOCK_FILE):
            machine = Machine(
                len(os.sched_getaffinity(0)), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            )

            def agent() -> Agent:
                newest = identity.load(ports.files, directory)
                bus = bus_for(newest, settings, ports)
                return Agent(directory, settings, ports, bus, newest, machine=machine)

            asyncio.run(service.run(lambda: live(agent), stop_deadline_s=STOP_S))
    except LockHeld as error:
        return _failed(f"another agent runs on this directory: {error}")
    except BusRefused as error:
        return _failed(
            f"device {own.device}: the broker refuses its login: it was probably revoked, or its password "
            f"replaced by a newer invitation; ask the operator for a new token "
            f"(`fedbus-coordinator invite {own.device}`) and enrol in a new directory ({error})"
        )
    except (identity.IdentityError, config.ConfigError, RevokedHere) as error:
        return _failed(str(error), NO_USE)
    except (LedgerError, BusError) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{directory}: {error}; correct the cause (space, permissions) and start again")
    return 0


def _failed(text: str, status: int = FAILED) -> int:
    print(f"fedbus-agent: {text}", file=sys.stderr)  # noqa: T201  # the one line for people
    return status


if __name__ == "__main__":
    sys.exit(main())
