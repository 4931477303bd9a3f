"""``fedbus-agent``: enroll a device, run its agent, look at its state, take its models out.

Output is for people; ``--json`` for programs. Exit status 0 done, 1 failed with one line that says why
and what to do, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_agent import cli_doctor, cli_enroll, cli_model
from edge_agent.cli_errors import CommandFailed, Misused
from edge_agent.origin import Shadowed, check_origin

DIR_VARIABLE: Final = "FEDBUS_AGENT_DIR"
DIR_DEFAULT: Final = "~/.local/share/fedbus"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        check_origin()
        arguments.command(arguments)
    except (CommandFailed, Shadowed) as error:
        print(f"fedbus-agent: {error}", file=sys.stderr)
        return 2 if isinstance(error, Misused) else 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("fedbus-agent: interrupted; run the command again to go on", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedbus-agent", description="The fedbus agent of one device.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="work for the federation until stopped")
    run.add_argument("--verbose", action="store_true", help="log more")
    run.set_defaults(command=_run)
    status = commands.add_parser("status", help="what this device is, and what it holds")
    status.add_argument("--json", action="store_true", help="one JSON document on standard output")
    status.set_defaults(command=_status)
    others = [parser for module in (cli_enroll, cli_doctor, cli_model) for parser in module.add(commands)]
    for command in (run, status, *others):
        command.add_argument(
            "--dir",
            type=Path,
            default=Path(os.environ.get(DIR_VARIABLE, DIR_DEFAULT)).expanduser(),
            help=f"state directory (default {DIR_DEFAULT}, or ${DIR_VARIABLE})",
        )
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from broker.worker import SMALL_ALLOCATOR, with_our_packages

    # The resident is a program of its own: nothing that this one loaded stays in its memory.
    argv = [sys.executable, "-P", "-m", "edge_agent", "--dir", str(arguments.dir)]
    argv += ["--verbose"] if arguments.verbose else []
    environment = SMALL_ALLOCATOR | with_our_packages(os.environ)
    os.execve(sys.executable, argv, environment)  # noqa: S606  # our own interpreter


def _status(arguments: argparse.Namespace) -> None:
    from broker.system import system_ports
    from edge_agent.identity import IdentityError
    from edge_agent.ledger import LedgerError
    from edge_agent.status import describe, for_people

    try:
        state = describe(system_ports().files, arguments.dir)
    except (IdentityError, LedgerError) as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{arguments.dir}: can't be read: {error}") from error
    print(json.dumps(state, indent=2) if arguments.json else for_people(state))


if __name__ == "__main__":
    sys.exit(main())
