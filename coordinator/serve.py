"""``serve``: one coordinator on one state directory, as a service."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from broker import service
from broker.bus import Bus
from broker.embedded import EmbeddedBroker
from broker.ports import LockHeld, Ports
from coordinator import control
from coordinator.app import Coordinator
from coordinator.broker_admin.access import Access, EmbeddedAccess, access_for
from coordinator.config import LOCK, Config, load_config
from coordinator.connection import bus_for
from coordinator.doctor.mqtt import dropping
from coordinator.keystore import Identity, load_identity
from coordinator.setup import embedded_broker
from schemas import topics
from schemas.limits import STOP_S

READY_POLL_S = 0.05
BROKER_CHECK_S = 2.0

log = structlog.get_logger()


def serve(directory: Path, ports: Ports) -> None:
    """Serve ``directory`` until SIGTERM or SIGINT.

    Raises `LockHeld`, `coordinator.config.ConfigError`, `coordinator.keystore.KeysMissing`,
    `broker.bus.BusError`, `broker.journal.JournalError`, `coordinator.store.Altered`, OSError.
    """
    config = load_config(ports.files, directory, os.environ)
    identity = load_identity(ports.files, directory)
    try:
        with ports.lock.hold(directory / LOCK):
            asyncio.run(
                service.run(lambda: _serve(directory, config, identity, ports), stop_deadline_s=STOP_S)
            )
    except LockHeld as error:
        holder = ports.files.read(directory / LOCK).decode(errors="replace").strip() or "unknown"
        raise LockHeld(
            f"another coordinator (pid {holder}) serves {directory}; stop it first, with `kill {holder}`"
        ) from error
    log.info("stopped", directory=str(directory))


async def _serve(directory: Path, config: Config, identity: Identity, ports: Ports) -> None:
    broker = embedded_broker(ports, directory, config) if config.broker.startswith("embedded:") else None
    if broker is not None:
        access: Access = EmbeddedAccess(ports, broker, identity.federation)
    else:
        access = access_for(ports, directory, config, identity.federation)
    bus = bus_for(directory, config, identity, ports, [topics.all_up(identity.federation)])
    # First the journal: a directory whose log cannot be read starts no broker.
    coordinator = Coordinator(directory, config, identity, ports, bus, access)
    try:
        if broker is not None:
            await broker.ensure()
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(_tell_ready(directory), name="ready")]
            if broker is not None:
                beside.append(tasks.create_task(_keep_alive(broker), name="broker"))
            elif config.broker.startswith("mqtt"):
                looking = _look_for_drops(bus, directory, config, identity, ports)
                beside.append(tasks.create_task(looking, name="drops"))
            try:
                await coordinator.run()
            finally:
                for task in beside:
                    task.cancel()
    finally:
        coordinator.ledger.journal.close()
        await _stop(broker)


async def _look_for_drops(
    bus: Bus, directory: Path, config: Config, identity: Identity, ports: Ports
) -> None:
    """Once per start, when the broker is there: warn if it drops what it acknowledges, as Mosquitto does by
    default."""
    while True:
        await asyncio.sleep(BROKER_CHECK_S)
        if not bus.problem:
            break
    if problem := await dropping(directory, config, identity, ports):
        log.warning("the broker drops messages", problem=problem)


async def _keep_alive(broker: EmbeddedBroker) -> None:
    """Start our own broker again when it was killed; raises `broker.bus.BusError` when that fails."""
    while True:
        await asyncio.sleep(BROKER_CHECK_S)
        if not broker.alive():
            await broker.ensure()


async def _stop(broker: EmbeddedBroker | None) -> None:
    """A broker of our own ends with us; after a kill it stays, and is found again."""
    if broker is not None:
        await broker.stop()


async def _tell_ready(directory: Path) -> None:
    if service.NOTIFY_SOCKET not in os.environ:
        return
    while True:
        try:
            await control.call(directory, {"op": "status"})
        except control.NotServing:
            await asyncio.sleep(READY_POLL_S)
        else:
            service.notify("READY=1")
            return
