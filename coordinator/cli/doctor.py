"""``fedbus-coordinator doctor``: the findings as they come, or as one document."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.cli.options import DIRECTORY_DEFAULT, AsJson, Directory
from coordinator.cli.output import Failed, UsageFault, print_json, print_lines

if TYPE_CHECKING:
    from broker.checkup import Finding


def doctor(directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """Measure what may keep the coordinator from its work: keys, journal, clock, disk, broker.

    Works beside a coordinator that serves. Sends about 40 MiB to itself through the broker. Exit status 1 if
    something is at fault.
    """
    from broker.checkup import Level, document, lines, other_owner, summary

    if problem := other_owner(directory):
        raise UsageFault(problem)
    findings: list[Finding] = []

    def told(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            print_lines(*lines(finding))

    # What goes wrong with a connection is found, and told once.
    logging.getLogger("broker").addHandler(logging.NullHandler())
    asyncio.run(_examine(directory, told))
    print_json(document(findings)) if as_json else print_lines(summary(findings))
    faults = [finding.name for finding in findings if finding.level is Level.FAULT]
    if faults:
        raise Failed(f"{directory}: at fault: {', '.join(faults)}; what to change stands below each")


async def _examine(directory: Path, told: Callable[[Finding], None]) -> None:
    from broker.system import system_ports
    from coordinator.config import load_config
    from coordinator.doctor.examine import examine
    from coordinator.keystore import load_identity

    ports = system_ports()
    config = load_config(ports.files, directory, os.environ)
    identity = load_identity(ports.files, directory)
    async for finding in examine(directory, config, identity, ports):
        told(finding)
