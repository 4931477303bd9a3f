"""What the doctor measures at RabbitMQ over AMQP: the coordinator's queue, and what probes can tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Final

from broker.amqp import QUEUE_ARGUMENTS
from broker.amqp_connection import Address
from broker.amqp_look import QueueLook, look
from broker.bus import BusError, Credentials
from broker.checkup import Finding, Level, told
from broker.reach import endpoint
from coordinator.doctor import checks
from coordinator.doctor.probes import Probes
from coordinator.doctor.remedies import Brand

Asked = Callable[[], Awaitable[dict[str, str] | None]]

LOOK_S: Final = 20.0
MAKE: Final = "`fedbus-coordinator broker rabbitmq` makes it"
DROPS: Final = ("durable", "x-overflow", "x-queue-type")
"""With these as they must be, no confirmed message is lost; the rest are bounds."""
CHECKS: Final[dict[str, checks.Check]] = {
    "access rules": checks.access_rules,
    "message size": checks.message_size,
}


async def examine(
    probes: Probes, url: str, own: Credentials, asked: Asked | None, *, serving: bool
) -> AsyncIterator[Finding]:
    """Everything about a RabbitMQ that answers at its port. ``asked`` says how the queue differs from what it
    must be, where the user itself may not ask. ``serving``: our coordinator runs."""
    login = await checks.logged_in(probes)
    yield login
    if login.level is Level.FAULT:
        return
    at = endpoint(url)
    try:
        async with asyncio.timeout(LOOK_S):
            found = await look(Address(at.host, at.port, at.vhost, at.secure), own)
    except (BusError, TimeoutError) as error:
        silent = (
            f"queue {own.client_id}: no answer within {LOOK_S:g} s; `rabbitmq-queues quorum_status` tells"
        )
        yield told("queue", error if str(error) else BusError(silent))
    else:
        if found.exists and found.differences is None and asked is not None:
            found = replace(found, differences=await asked())
        for finding in queue(own.client_id, found, serving=serving):
            yield finding
    async for finding in checks.tried(probes, Brand.RABBITMQ, CHECKS):
        yield finding


def queue(name: str, found: QueueLook, *, serving: bool) -> Iterator[Finding]:
    """What a look at the coordinator's queue says."""
    if not found.exists:
        yield Finding("queue", Level.FAULT, f"there is no queue {name}: the coordinator cannot listen", MAKE)
        return
    yield _arguments(name, found)
    yield _readers(name, found, serving=serving)
    kept = "what it confirmed in a quorum queue is on the disks of most of its nodes, even when it is killed"
    yield Finding("durability", Level.OK, f"{found.server}: {kept}")


def _arguments(name: str, found: QueueLook) -> Finding:
    wrong = found.differences
    if wrong is None:
        measured = f"queue {name} is there; this user may not ask what kind it is"
        remedy = (
            "`rabbitmqctl list_queues name type arguments` tells; with `--store-credentials`, "
            "`fedbus-coordinator broker rabbitmq` lets the doctor ask"
        )
        return Finding("queue", Level.UNKNOWN, measured, remedy)
    if not wrong:
        return Finding("queue", Level.OK, f"queue {name}: durable, {_pairs(QUEUE_ARGUMENTS)}")
    if wrong.get("x-queue-type") == "none":
        wrong = wrong | {"x-queue-type": "classic"}
    wanted = {key: value for key, value in {"durable": "true", **QUEUE_ARGUMENTS}.items() if key in wrong}
    level = Level.FAULT if any(key in DROPS for key in wrong) else Level.WARNING
    remedy = (
        f"it must have {_pairs(wanted)}: stop the coordinator once the queue is empty, "
        f"`rabbitmqctl delete_queue {name}`, and {MAKE}"
    )
    return Finding("queue", level, f"queue {name}: {_pairs(wrong)}", remedy)


def _readers(name: str, found: QueueLook, *, serving: bool) -> Finding:
    waiting = f"{found.messages} messages wait in queue {name}"
    if found.consumers > serving:
        others = found.consumers - serving
        measured = f"{others} other reader{'s' if others > 1 else ''} of queue {name}: each gets a part of it"
        remedy = f"stop the other coordinator; `rabbitmqctl list_consumers` names its connection ({name})"
        return Finding("readers", Level.FAULT, measured, remedy)
    if serving and not found.consumers:
        measured = f"{waiting}, and the coordinator that serves does not read it"
        return Finding("readers", Level.FAULT, measured, "see `fedbus-coordinator status` and its log")
    return Finding(
        "readers", Level.OK, f"{waiting}; {'only the coordinator reads it' if serving else 'no reader'}"
    )


def _pairs(values: dict[str, str] | dict[str, str | int]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())
