"""``replay --onto`` and ``journal stage``: a recording against programs under test."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.cli.output import Failed, UsageFault, print_json, print_lines, print_table

if TYPE_CHECKING:
    from broker.bus import Bus, Credentials

SHOWN = 20
COLUMNS = ("round", "device", "what", "recorded", "played")


def parse_speed(text: str) -> float:
    """``max`` is infinite. Raises `UsageFault`."""
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise UsageFault(f"--speed {text}: a number above 0, such as 50, or max")
    return speed


def stage_for(directory: Path, target: Path, broker: str, job: str) -> dict[str, Any]:
    """What `coordinator.onto.stage` made. Raises `coordinator.onto.OntoRefused`, `ConfigError`."""
    from broker.system import system_ports
    from coordinator.cli.state import require_state_directory
    from coordinator.config import Config, check, load_config
    from coordinator.onto.stage import stage

    require_state_directory(directory)
    ports = system_ports()
    config = Config(broker=broker) if broker else load_config(ports.files, directory, {})
    check(config)
    job = stage(ports, directory, target, config, job)
    return {"dir": str(target), "job": job, "broker": config.broker}


def play_onto(
    directory: Path, url: str, speed: float, *, job: str, device: str, ca: Path | None, as_json: bool
) -> None:
    """Play, and tell what came of it. Raises `Failed` if anything differs."""
    from broker.connect import check_device_url, connect
    from broker.system import system_ports
    from coordinator.onto.ask import ask_agent
    from coordinator.onto.play import play_devices
    from coordinator.onto.source import Source

    # What goes wrong with a connection is told once, in the end.
    logging.getLogger("broker").addHandler(logging.NullHandler())
    ports, authority = system_ports(), _authority(ca)
    if not device:
        check_device_url(url)
    source = Source(ports, directory, authority)

    def dial(who: Credentials, subscriptions: Sequence[str]) -> Bus:
        return connect(url, who, subscriptions, ports=ports)

    try:
        playing = (
            ask_agent(ports, source, dial, speed, device, job)
            if device
            else play_devices(ports, source, dial, speed, job)
        )
        report = asyncio.run(playing)
    finally:
        source.close()
    document = report.document()
    if as_json:
        print_json(document)
    else:
        _print(document)
    if report.stopped:
        raise Failed(f"stopped: {report.stopped}")
    problems = [f"differing answers: {len(report.differing)}"] if report.differing else []
    if report.final and not report.final["equal"]:
        problems.append(f"the last version ({report.final['version']}) is not the recorded one")
    if problems:
        raise Failed("; ".join(problems))


def _authority(path: Path | None) -> str:
    try:
        return path.read_text() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise UsageFault(f"--ca {path}: {why}; name the PEM file") from error


def _print(document: dict[str, Any]) -> None:
    print_lines(
        f"{document['who']}, speed {document['speed']}: {document['updates']} updates",
        f"accepted {document['accepted']}, rejected {_counts(document['rejected'])}, "
        f"declined {_counts(document['declined'])}",
    )
    latency = document["latency_ms"]
    if latency["median"] is not None:
        print_lines(f"{document['measured']}: median {latency['median']} ms, p99 {latency['p99']} ms")
    if differing := document["differing"]:
        more = sorted({name for row in differing for name in row} - set(COLUMNS))
        columns = (*COLUMNS, *more)
        rows = [[_short(row.get(name, "")) for name in columns] for row in differing[:SHOWN]]
        print_table(f"{len(differing)} answers differ", columns, rows)
        if len(differing) > SHOWN:
            print_lines(f"and {len(differing) - SHOWN} more: --json has all")
    if final := document["final"]:
        word = "the recorded digest" if final["equal"] else f"recorded {final['recorded']}"
        print_lines(f"version {final['version']}: {final['played']}, {word}")


def _counts(counts: dict[str, int]) -> str:
    named = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    return f"{sum(counts.values())}" + (f" ({named})" if named else "")


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
