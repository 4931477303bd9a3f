"""``fedbus-agent enroll``: from an operator's token to a member of the federation."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli_errors import CommandFailed, Misused

if TYPE_CHECKING:
    from broker.ports import Ports
    from edge_agent.config import Config
    from edge_agent.identity import Identity
    from schemas.enrolment import Token

WAIT_S_MAX = 86_400.0


def add(commands: Any) -> list[argparse.ArgumentParser]:
    """Add ``enroll`` to the program's commands; returns its parser."""
    enroll = commands.add_parser("enroll", help="become a member of a federation with an operator's token")
    enroll.add_argument("token", nargs="?", help="the token; - or nothing: read it from standard input")
    enroll.add_argument(
        "--token-file",
        type=Path,
        help="read the token from this file (what is typed, the process list shows to others)",
    )
    enroll.add_argument("--wait-s", type=float, default=60.0, help="how long to wait for the coordinator")
    enroll.add_argument("--broker", default="", help="reach the broker by this URL, not by the token's")
    enroll.add_argument("--ca", type=Path, help="PEM file: who signed the broker's certificate (kept)")
    enroll.add_argument("--certificate", type=Path, help="PEM file: this device's certificate (kept)")
    enroll.add_argument("--key", type=Path, help="PEM file: its key (kept)")
    enroll.set_defaults(command=_enroll)
    return [enroll]


def _enroll(arguments: argparse.Namespace) -> None:
    from broker.ports import LockHeld
    from broker.system import system_ports
    from edge_agent import config, enrol, identity

    if not 0 < arguments.wait_s <= WAIT_S_MAX:
        raise Misused(f"--wait-s {arguments.wait_s:g}: give seconds above 0, at most {WAIT_S_MAX:g}")
    if (arguments.certificate is None) is not (arguments.key is None):
        raise Misused("--certificate and --key belong together: give both, or none")
    token = _token(arguments)
    given = {name: _read(name, getattr(arguments, name)) for name in config.KEPT}
    ports, directory = system_ports(), arguments.dir
    try:
        ports.files.make_dir(directory)
        with ports.lock.hold(directory / identity.LOCK_FILE):
            own = enrol.prepare(ports, directory, token)
            config.keep(ports.files, directory, given)
            done = own.active
            if not done:
                settings = config.load(ports.files, directory, os.environ)
                own = asyncio.run(_join(ports, directory, own, settings, arguments))
    except LockHeld as error:
        raise CommandFailed(f"an agent runs on this directory: {error}") from error
    except (enrol.OtherFederation, identity.IdentityError, config.ConfigError) as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{directory}: {error}; correct its permissions, or use another --dir") from error
    already = "is enrolled already" if done else "is enrolled"
    print(f"device {own.device} {already} in federation {own.federation.hex()} for entity {own.entity()}")
    print(f"broker: {_without_login(own.urls[0])}")
    print(f"next: allow tasks in {directory / 'agent.toml'}, then `fedbus-agent run --dir {directory}`")


def _read(name: str, path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Misused(f"--{name} {path}: {error.strerror}; name the PEM file") from error


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


async def _join(
    ports: Ports, directory: Path, own: Identity, settings: Config, arguments: argparse.Namespace
) -> Identity:
    from broker.bus import BusError, BusRefused
    from edge_agent import enrol
    from schemas.errors import TokenRefused

    named = arguments.broker or settings.broker
    attempt = enrol.Attempt()
    # Why there is no connection is told at the end, once.
    logging.getLogger("broker").addHandler(logging.NullHandler())
    try:
        async with asyncio.timeout(arguments.wait_s):
            urls = [named] if named else own.urls
            return await enrol.enrol_by(urls, attempt, ports, directory, own, settings)
    except TimeoutError as error:
        cause = attempt.problem or "it can be reached, but no coordinator answers: see that it serves"
        where = f"(broker {_without_login(attempt.url)})"
        raise CommandFailed(
            f"device {own.device}: no answer within {arguments.wait_s:g} s {where}: {cause}; then run the "
            f"same command again"
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
        raise CommandFailed(f"device {own.device}: {error} (broker {_without_login(attempt.url)})") from error


def _without_login(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2]
