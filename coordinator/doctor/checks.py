"""What the doctor tries out at any broker, each as a finding."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from broker.bus import BusError
from broker.checkup import Finding, Level, bare, told
from coordinator.doctor.probes import ProbeFailed, Probes
from coordinator.doctor.remedies import Brand, remedy
from schemas.limits import CHUNK_BYTES_DEFAULT, MESSAGE_BYTES_MAX

HELD_MESSAGES: Final = 2_000
HELD_CHUNKS: Final = 32
STALL_S: Final = 0.020
"""Half of the 40 ms for which a kernel holds back an acknowledgement at least."""

Check = Callable[[Probes, Brand], Awaitable[Finding]]


async def tried(probes: Probes, brand: Brand, checks: Mapping[str, Check]) -> AsyncIterator[Finding]:
    """The findings of ``checks``, if what we publish comes back at all; otherwise why not."""
    try:
        await probes.echo()
    except (ProbeFailed, BusError) as error:
        yield _silent(probes, brand, bare(error))
        return
    for name, check in checks.items():
        try:
            yield await check(probes, brand)
        except (ProbeFailed, BusError) as error:
            yield Finding(name, Level.UNKNOWN, bare(error), "repeat this while broker and link are idle")


def _silent(probes: Probes, brand: Brand, problem: str) -> Finding:
    change = remedy("probe topic", brand, topic=probes.topic, user=probes.user)
    if "alarm" in problem:
        change = remedy("alarm", Brand.RABBITMQ)
    return Finding("publishing", Level.FAULT, f"{problem}: nothing more is measured", change)


async def logged_in(probes: Probes) -> Finding:
    """Log in and subscribe as the coordinator does."""
    try:
        await probes.may_subscribe()
    except (ProbeFailed, BusError) as error:
        return told("login", error)
    who = f"user {probes.user} logs in" if probes.user else "nobody in particular logs in"
    return Finding("login", Level.OK, f"{who}, and is granted its subscription")


async def sessions(probes: Probes) -> Finding:
    """Whether there may be others beside the coordinator's: before anything else, because a probe that is not
    durable would empty the coordinator's queue."""
    try:
        shared = await probes.shared()
    except (ProbeFailed, BusError) as error:
        return told("login", error)
    return taken(probes) if shared else Finding("sessions", Level.OK, "each keeps its own name")


def taken(probes: Probes) -> Finding:
    """What a broker that names sessions after their user does to the coordinator's."""
    measured = (
        f"all sessions of user {probes.user} take the place of the coordinator's: nothing more is measured"
    )
    return Finding("sessions", Level.FAULT, measured, remedy("shared sessions", Brand.MOSQUITTO))


async def anonymous(probes: Probes, brand: Brand) -> Finding:
    """Try to log in as nobody."""
    if await probes.anonymous():
        measured = "anybody may log in without a name"
        return Finding("anonymous login", Level.FAULT, measured, remedy("anonymous login", brand))
    return Finding("anonymous login", Level.OK, "refused")


async def access_rules(probes: Probes, brand: Brand) -> Finding:
    """Publish where the coordinator must not."""
    fate = await probes.denied()
    if fate.arrived:
        measured = f"there are none: {probes.user or 'anybody'} may speak as a device"
        return Finding("access rules", Level.FAULT, measured, remedy("access rules", brand))
    shown = "acknowledges it all the same: only its own log tells"
    if fate.refused:
        shown = "tells the sender"
    elif fate.hung_up:
        shown = "acknowledges it, and ends the connection"
    return Finding("access rules", Level.OK, f"a message on a device's topic is stopped; the broker {shown}")


async def message_size(probes: Probes, brand: Brand) -> Finding:
    """Send the largest message of the protocol to a session that is there."""
    fate = await probes.carried(MESSAGE_BYTES_MAX)
    size = f"a message of {MESSAGE_BYTES_MAX >> 20} MiB"
    if fate.arrived:
        return Finding("message size", Level.OK, f"{size} arrives")
    how, change = ("refuses it", "size refused") if fate.refused else ("drops it silently", "size dropped")
    measured = f"{size} does not arrive; the broker {how}"
    return Finding("message size", Level.FAULT, measured, remedy(change, brand))


async def queue_length(probes: Probes, brand: Brand, count: int = HELD_MESSAGES) -> Finding:
    """Send many small messages to a session that is away."""
    held = await probes.held(count, 0)
    if held == count:
        return Finding("queue length", Level.OK, f"{count} messages to a session that is away: all kept")
    measured = f"{count} messages to a session that is away, all acknowledged: {held} kept"
    return Finding("queue length", Level.FAULT, measured, remedy("queue length", brand))


async def queue_bytes(probes: Probes, brand: Brand) -> Finding:
    """Send large messages to a session that is away."""
    size = CHUNK_BYTES_DEFAULT
    if not (await probes.carried(size)).arrived:
        measured = f"messages of {size >> 20} MiB do not even reach a session that is there"
        return Finding("queue bytes", Level.UNKNOWN, measured)
    held = await probes.held(HELD_CHUNKS, size)
    sent = f"{HELD_CHUNKS * size >> 20} MiB to a session that is away"
    if held == HELD_CHUNKS:
        return Finding("queue bytes", Level.OK, f"{sent}: all kept")
    measured = f"{sent}, all acknowledged: {held * size >> 20} MiB kept"
    return Finding("queue bytes", Level.FAULT, measured, remedy("queue bytes", brand))


async def delay(probes: Probes, brand: Brand) -> Finding:
    """Look whether small messages wait for each other."""
    stall_ms = 1_000 * await probes.stall_s()
    if stall_ms < 1_000 * STALL_S:
        return Finding("delay", Level.OK, f"small messages do not wait for each other ({stall_ms:.1f} ms)")
    measured = f"TCP_NODELAY is off: a small message waits {stall_ms:.0f} ms for the one before it"
    return Finding("delay", Level.WARNING, measured, remedy("delay", brand))
