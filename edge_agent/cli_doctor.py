"""``fedbus-agent doctor``: the findings as they come, or as one document."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edge_agent.cli_errors import CommandFailed, Misused

if TYPE_CHECKING:
    from broker.checkup import Finding


def add(commands: Any) -> list[argparse.ArgumentParser]:
    """Add ``doctor`` to the program's commands; returns its parser."""
    parser = commands.add_parser("doctor", help="measure what may keep this device from its work")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.set_defaults(command=doctor)
    return [parser]


def doctor(arguments: argparse.Namespace) -> None:
    """Print the findings. Raises `CommandFailed` if something is at fault, `Misused` in another user's
    directory."""
    from broker.checkup import Level, document, lines, other_owner, summary, unwritable

    if problem := other_owner(arguments.dir):
        raise Misused(problem)
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not arguments.json:
            print(*lines(finding), sep="\n", flush=True)

    # What goes wrong with a connection is found, and told once.
    logging.getLogger("broker").addHandler(logging.NullHandler())
    try:
        asyncio.run(_examine(arguments, tell))
    except OSError as error:
        tell(unwritable(arguments.dir, error))
    print(json.dumps(document(findings), indent=2) if arguments.json else summary(findings))
    faults = [finding.name for finding in findings if finding.level is Level.FAULT]
    if faults:
        raise CommandFailed(
            f"{arguments.dir}: at fault: {', '.join(faults)}; what to change stands below each"
        )


async def _examine(arguments: argparse.Namespace, tell: Callable[[Finding], None]) -> None:
    from broker.system import system_ports
    from edge_agent.doctor import examine

    async for finding in examine(arguments.dir, system_ports(), os.environ):
        tell(finding)
