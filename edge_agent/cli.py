"""``fedbus-agent``: enroll a device, run its agent, look at its state.

Output is for people; ``--json`` for programs. Exit status 0 done, 1 failed with one line that says why
and what to do, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_agent.origin import Shadowed, check_origin

if TYPE_CHECKING:
    from broker.ports import Ports
    from edge_agent.identity import Identity
    from schemas.enrolment import Token

DIR_VARIABLE: Final = "FEDBUS_AGENT_DIR"
DIR_DEFAULT: Final = "~/.local/share/fedbus"


class CommandFailed(Exception):
    """A command can't be carried out; the message goes to the person as it is."""


class Misused(CommandFailed):
    """A command can't be used as it was typed (exit status 2)."""


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
    enroll = commands.add_parser("enroll", help="become a member of a federation with an operator's token")
    enroll.add_argument("token", nargs="?", help="the token; - or nothing: read it from standard input")
    enroll.add_argument(
        "--token-file",
        type=Path,
        help="read the token from this file (what is typed, the process list shows to others)",
    )
    enroll.add_argument("--wait-s", type=float, default=60.0, help="how long to wait for the coordinator")
    enroll.add_argument("--broker", default="", help="reach the broker by this URL, not by the token's")
    enroll.set_defaults(command=_enroll)
    run = commands.add_parser("run", help="work for the federation until stopped")
    run.add_argument("--verbose", action="store_true", help="log more")
    run.set_defaults(command=_run)
    status = commands.add_parser("status", help="what this device is, and what it holds")
    status.add_argument("--json", action="store_true", help="one JSON document on standard output")
    status.set_defaults(command=_status)
    for command in (enroll, run, status):
        command.add_argument(
            "--dir",
            type=Path,
            default=Path(os.environ.get(DIR_VARIABLE, DIR_DEFAULT)).expanduser(),
            help=f"state directory (default {DIR_DEFAULT}, or ${DIR_VARIABLE})",
        )
    return parser


def _enroll(arguments: argparse.Namespace) -> None:
    from broker.ports import LockHeld
    from broker.system import system_ports
    from edge_agent import enrol, identity

    if not 0 < arguments.wait_s <= 86_400:
        raise Misused(f"--wait-s {arguments.wait_s:g}: give seconds above 0, at most 86400")
    token = _token(arguments)
    ports, directory = system_ports(), arguments.dir
    try:
        ports.files.make_dir(directory)
        with ports.lock.hold(directory / identity.LOCK_FILE):
            own = enrol.prepare(ports, directory, token)
            done = own.active
            if not done:
                own = asyncio.run(_join(ports, directory, own, arguments))
    except LockHeld as error:
        raise CommandFailed(f"an agent runs on this directory: {error}") from error
    except (enrol.OtherFederation, identity.IdentityError) as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{directory}: {error}; correct its permissions, or use another --dir") from error
    already = "is enrolled already" if done else "is enrolled"
    print(f"device {own.device} {already} in federation {own.federation.hex()} for entity {own.entity()}")
    print(f"next: allow tasks in {directory / 'agent.toml'}, then `fedbus-agent run --dir {directory}`")


def _token(arguments: argparse.Namespace) -> Token:
    from schemas.enrolment import token_from_text
    from schemas.errors import TokenRefused

    try:
        if arguments.token_file is not None:
            text = arguments.token_file.read_text(encoding="utf-8")
        elif arguments.token in (None, "-"):
            text = sys.stdin.read()
        else:
            text = arguments.token
        return token_from_text(text)
    except OSError as error:
        text = f"token file {arguments.token_file or 'standard input'}: {error.strerror}"
        raise Misused(f"{text}; name the file that holds the operator's token") from error
    except UnicodeDecodeError as error:
        text = f"{arguments.token_file or 'standard input'} is not text, so it holds no token"
        raise Misused(f"{text}; name the file that holds the operator's token") from error
    except TokenRefused as error:
        raise CommandFailed(f"{error}, or ask the operator for a new one") from error


async def _join(ports: Ports, directory: Path, own: Identity, arguments: argparse.Namespace) -> Identity:
    from broker.bus import BusError, BusRefused
    from edge_agent import enrol
    from edge_agent.config import Config
    from edge_agent.presence import bus_for
    from schemas.errors import TokenRefused

    url = arguments.broker or own.urls[0]
    try:
        async with asyncio.timeout(arguments.wait_s):
            bus = bus_for(own, Config(broker=arguments.broker), ports)
            return await enrol.enrol(ports, directory, own, bus)
    except TimeoutError as error:
        raise CommandFailed(
            f"device {own.device}: no answer within {arguments.wait_s:g} s; see that the broker is reachable "
            f"and the coordinator runs, then run the same command again"
        ) from error
    except TokenRefused as error:
        raise CommandFailed(f"device {own.device}: refused: {error}") from error
    except BusRefused as error:
        raise CommandFailed(
            f"device {own.device}: the broker refuses the login in this token: it was probably replaced by a "
            f"newer invitation, or the device was revoked; enrol with the newest token, or ask the operator "
            f"for one (`fedbus-coordinator invite {own.device}`) ({error})"
        ) from error
    except BusError as error:
        raise CommandFailed(f"device {own.device}: {error} (broker {_without_login(url)})") from error


def _without_login(url: str) -> str:
    return url.rpartition("@")[2]


def _run(arguments: argparse.Namespace) -> None:
    from broker.worker import with_our_packages

    # The resident is a program of its own: nothing that this one loaded stays in its memory.
    argv = [sys.executable, "-P", "-m", "edge_agent", "--dir", str(arguments.dir)]
    argv += ["--verbose"] if arguments.verbose else []
    os.execve(sys.executable, argv, with_our_packages(os.environ))  # noqa: S606  # our own interpreter


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
