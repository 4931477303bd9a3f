"""``demo``: a federation on this machine, as in real life.

Coordinator and agents are processes of their own, devices enrol by tokens, the data is real, one device is
slow; in the end the model is compared with training apart and training together.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from broker import service
from broker.journal import JournalMissing
from broker.ports import LockHeld, Ports, write_atomic
from broker.system import system_ports
from coordinator.cli.init import begin
from coordinator.cli.output import Failed, UsageFault, print_json
from coordinator.cli.state import read_state
from coordinator.config import FILE, load_config
from coordinator.demo import data as demo_data
from coordinator.demo import run as demo_run
from coordinator.demo.progress import LiveProgress, PlainProgress, Progress
from coordinator.demo.result import print_result
from coordinator.setup import embedded_broker

SETTINGS = "demo.json"
RESULT = "result.json"
DATA = "data"
LOCK = "demo.lock"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a demonstration is made of. ``broker`` is the URL of one that lets everybody in, or empty: an
    embedded one, or whatever the federation that is there already was made for."""

    devices: int = demo_data.DEVICES
    rounds: int = demo_data.ROUNDS
    alpha: float = demo_data.ALPHA
    seed: int = 0
    broker: str = ""


def demo(directory: Path, chosen: dict[str, Any], *, as_json: bool) -> None:
    """Run the demonstration in ``directory``, or go on with the one there, or show its result again.

    ``chosen`` are the settings that were typed. Raises `Failed`, `UsageFault`, and what
    `coordinator.cli.errors.EXPECTED` holds.
    """
    ports = system_ports()
    settings = _settled(ports, directory, chosen)
    try:
        with ports.lock.hold(directory / LOCK):
            result = _result(ports, directory, settings, as_json=as_json)
    except LockHeld as error:
        raise Failed(f"a demo runs in {directory}; wait for it, stop it, or choose another --dir") from error
    if as_json:
        print_json(result)
    else:
        print_result(result, directory, demo_run.JOB)


def _settled(ports: Ports, directory: Path, chosen: dict[str, Any]) -> Settings:
    """The settings of this directory: those of its first run, which later ones must not contradict."""
    path = directory / SETTINGS
    if not ports.files.exists(path):
        settings = Settings(**chosen)
        if ports.files.exists(directory / FILE):
            _require_unused(ports, directory, settings)
        elif set(ports.files.names(directory)) - {LOCK, DATA}:
            raise UsageFault(f"{directory} is not empty and holds no demo; choose another --dir")
        ports.files.make_dir(directory)
        write_atomic(ports.files, path, json.dumps(asdict(settings), indent=1).encode() + b"\n")
        return settings
    try:
        settings = msgspec.json.decode(ports.files.read(path), type=Settings)
    except msgspec.DecodeError as error:
        raise Failed(f"{path}: {error}; delete {directory} and run the demo again") from error
    for name, value in chosen.items():
        if getattr(settings, name) != value:
            raise UsageFault(
                f"{directory} holds a demo with --{name} {getattr(settings, name)}, not {value}; "
                f"leave the option out to go on with that one, or choose another --dir"
            )
    return settings


def _require_unused(ports: Ports, directory: Path, settings: Settings) -> None:
    """A federation that was made for the demo, by ``init``: nobody is in it. Raises `UsageFault`."""
    if settings.broker:
        raise UsageFault(f"{directory} holds a federation with a broker of its own; leave --broker out")
    try:
        state = read_state(directory)
    except JournalMissing:
        return  # it never served
    if state.jobs or state.devices:
        raise UsageFault(
            f"{directory} holds a federation that is in use; the demo wants one without jobs and devices: "
            f"make one with `fedbus-coordinator init --dir DIR --broker URL`, or choose an empty --dir"
        )


def _result(ports: Ports, directory: Path, settings: Settings, *, as_json: bool) -> dict[str, Any]:
    path = directory / RESULT
    if ports.files.exists(path):
        sys.stderr.write(f"the demo in {directory} is finished; this is its result\n")
        known: dict[str, Any] = json.loads(ports.files.read(path))
        return known | {"dir": str(directory)}
    results: list[dict[str, Any]] = []

    async def run() -> None:
        results.append(await _run(ports, directory, settings, as_json=as_json))

    asyncio.run(service.run(run))
    if not results:
        raise Failed(f"stopped; the same command goes on where this one was (--dir {directory})")
    return results[0]


async def _run(ports: Ports, directory: Path, settings: Settings, *, as_json: bool) -> dict[str, Any]:
    started_s = ports.clock.monotonic_s()
    begun_before = ports.files.exists(directory / demo_run.HOMES)
    progress: Progress = PlainProgress()
    if sys.stderr.isatty() and not as_json:
        progress = LiveProgress([demo_run.device_name(n + 1) for n in range(settings.devices)])
    with progress:
        if begun_before:
            progress.tell(f"going on with the demo in {directory}")
        data = await _begun(ports, directory, settings)
        run = demo_run.Run(ports, directory, settings.devices, settings.rounds, settings.seed, progress)
        progress.tell(
            f"data: {data.samples} samples per device; test set {data.test_digest[:16]}, seen by none"
        )
        try:
            await run.train(data)
        finally:
            await _stop_broker(ports, directory)
        progress.tell("comparing with local-only and centralised training")
        result = await run.conclude(data)
    result |= {
        "dir": str(directory),
        "alpha": settings.alpha,
        "seed": settings.seed,
        "resumed": begun_before,
        "wall_s": round(ports.clock.monotonic_s() - started_s, 3),
    }
    write_atomic(ports.files, directory / RESULT, json.dumps(result, indent=1).encode() + b"\n", mode=0o644)
    return result


async def _begun(ports: Ports, directory: Path, settings: Settings) -> demo_data.DemoData:
    """The data, and a federation. Raises `UsageFault` for settings with which there is no demo."""
    try:
        data = await ports.offload.run(
            demo_data.make_digits, directory / DATA, settings.devices, settings.alpha, settings.seed
        )
        if not ports.files.exists(directory / FILE):
            broker = settings.broker or "embedded:0"
            begin(directory, broker, [settings.broker] if settings.broker else [], None)
    except (demo_data.DemoDataError, UsageFault) as error:
        # Nothing began: other settings may be tried here.
        ports.files.remove(directory / SETTINGS)
        raise UsageFault(str(error)) from error
    return data


async def _stop_broker(ports: Ports, directory: Path) -> None:
    """The coordinator ends its broker; if it could not, we do."""
    config = load_config(ports.files, directory, os.environ)
    if config.broker.startswith("embedded:"):
        await embedded_broker(ports, directory, config).stop()
