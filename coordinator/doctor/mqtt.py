"""What the doctor measures at an MQTT broker, and what ``serve`` looks at when it starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import structlog

from broker.bus import BusError
from broker.checkup import Finding, Level
from broker.ports import LockHeld, Ports
from coordinator.config import Config, ConfigError
from coordinator.doctor import checks
from coordinator.doctor.probes import LOCK, ProbeFailed, Probes
from coordinator.doctor.remedies import Brand, brand_of
from coordinator.keystore import Identity

LIGHT_MESSAGES: Final = 1_100
"""More than Mosquitto keeps by default (1,000)."""
CHECKS: Final[dict[str, checks.Check]] = {
    "access rules": checks.access_rules,
    "message size": checks.message_size,
    "queue length": checks.queue_length,
    "queue bytes": checks.queue_bytes,
    "delay": checks.delay,
}
DOOR: Final = {name: CHECKS[name] for name in ("queue length", "queue bytes", "delay")}
"""What is not the same for whoever speaks AMQP."""
DURABILITY: Final = {
    Brand.MOSQUITTO: "what it queues is lost when it is killed, and kept when it is stopped if it has "
    "`persistence true`",
    Brand.RABBITMQ: "what it confirmed is on its disk",
    Brand.UNKNOWN: "it does not tell what it is",
}
MENDED: Final = "devices send again what has no receipt, so no update is lost"

log = structlog.get_logger()


async def examine(probes: Probes, brand: Brand = Brand.UNKNOWN) -> AsyncIterator[Finding]:
    """Everything about an MQTT broker that answers at its port, as long as the next step makes sense."""
    for look in (checks.sessions, checks.logged_in):
        found = await look(probes)
        yield found
        if found.level is Level.FAULT:
            return
    text = "" if brand is Brand.RABBITMQ else await probes.brand()
    brand = brand_of(text) if text else brand
    known = Level.UNKNOWN if brand is Brand.UNKNOWN else Level.OK
    yield Finding("durability", known, f"{text or brand} broker: {DURABILITY[brand]}; {MENDED}")
    yield await checks.anonymous(probes, brand)
    async for finding in checks.tried(probes, brand, CHECKS):
        yield finding


async def door(probes: Probes) -> AsyncIterator[Finding]:
    """The devices' way into a RabbitMQ that the coordinator reaches over AMQP, as far as its own user may
    try it out."""
    yield await checks.anonymous(probes, Brand.RABBITMQ)
    login = await checks.logged_in(probes)
    if login.level is Level.FAULT:
        measured = f"nothing is tried out there, because our own user cannot: {login.measured}"
        yield Finding("login", Level.UNKNOWN, measured, "`fedbus-coordinator broker rabbitmq` lets it")
        return
    yield login
    async for finding in checks.tried(probes, Brand.RABBITMQ, DOOR):
        yield finding


async def dropping(directory: Path, config: Config, identity: Identity, ports: Ports) -> str:
    """How the broker drops what it acknowledged, or has each session push the coordinator's out, and the line
    to change; empty if it does not, or if that could not be found out. Never raises; light enough for every
    start."""
    try:
        with ports.lock.hold(directory / LOCK):
            probes = Probes(directory, config, identity, ports)
            if await probes.shared():
                found = checks.taken(probes)
            else:
                await probes.echo()
                found = await checks.queue_length(probes, brand_of(await probes.brand()), LIGHT_MESSAGES)
    except (LockHeld, OSError, BusError, ProbeFailed, ConfigError) as error:
        log.info("whether the broker drops messages was not found out", problem=str(error))
        return ""
    return f"{found.measured}; {found.remedy}" if found.level is Level.FAULT else ""
