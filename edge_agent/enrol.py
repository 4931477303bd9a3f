"""Becoming a member: keys first, then the join, until the welcome and the coordinator's "enrolled".

Keys are durable before they are shown to anybody, so that a crash repeats the same join: the coordinator
gives the same join the same answer, and another key for a spent token none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from broker import service
from broker.bus import Bus, BusRefused, BusUndelivered, Connected, Delivery
from broker.mailbox import Mailbox, Sequencer, read
from broker.ports import Ports
from edge_agent import presence
from edge_agent.config import Config
from edge_agent.identity import SEQUENCE_FILE, Identity, adopt, load_any, save
from schemas.enrolment import WELCOME_MAGIC, Token, open_welcome, seal_join, token_to_text
from schemas.envelope import parse
from schemas.errors import TokenRefused, WireError
from schemas.events import ChallengeAnswer, Enrolled, decode_from_coordinator
from schemas.limits import RESEND_CAP_S, RESEND_FIRST_S
from schemas.window import Window

REFUSED_S: Final = 5.0
REFUSED_AGAIN_S: Final = 0.5
TRY_S: Final = 10.0  # for a connection by one address, while there are others

Arrivals = AsyncIterator[Delivery | Connected]

log: Final = logging.getLogger("fedbus.enrol")


class OtherFederation(Exception):
    """The state directory belongs to a device of another federation, or to another device."""


def prepare(ports: Ports, directory: Path, token: Token) -> Identity:
    """The identity that joins with ``token``: the one that is here, or new keys, durable on return.

    An identity with a key set is enrolled already. Raises `OtherFederation`, `IdentityError`.
    """
    ports.files.make_dir(directory)
    known = load_any(ports.files, directory)
    if known is not None and known.key_set:
        if (known.federation, known.device) != (token.federation, token.device):
            raise OtherFederation(
                f"{directory} is the state directory of device {known.device} of federation "
                f"{known.federation.hex()}; the token is for device {token.device} of federation "
                f"{token.federation.hex()}: give it a directory of its own (--dir)"
            )
        return known
    text = token_to_text(token)
    if known is not None and known.token == text:
        return known
    fresh = Identity(
        device=token.device,
        root=token.root,
        urls=token.urls,
        password=token.password,
        ca=token.ca,
        signing_seed=ports.entropy.random_bytes(32),
        box_secret=ports.entropy.random_bytes(32),
        nonce=ports.entropy.random_bytes(32),
        token=text,
    )
    save(ports.files, directory, fresh)
    return fresh


@dataclass(slots=True)
class Attempt:
    """By which address it went, and why there was no connection when it ended (empty if there was one)."""

    url: str = ""
    problem: str = ""


async def enrol_by(
    urls: Sequence[str], attempt: Attempt, ports: Ports, directory: Path, identity: Identity, settings: Config
) -> Identity:
    """`enrol` by the first of the addresses that leads to a broker; the identity keeps that as its first.

    Waits as long as it takes; a refused login is tried again for `REFUSED_S`, because a broker may hear of a
    new user a moment after the invitation. Raises what `enrol` does, `broker.bus.BusError` for an address
    that cannot be used and `edge_agent.config.ConfigError` for a certificate that cannot.
    """
    began_s = ports.clock.monotonic_s()
    for url in cycle(urls):
        attempt.url = url
        bus = presence.bus_for(identity, replace(settings, broker=url), ports)
        try:
            async with asyncio.timeout(TRY_S if len(urls) > 1 else None) as patience:
                joined = await enrol(
                    ports, directory, identity, bus, attempt, connected=lambda: patience.reschedule(None)
                )
        except TimeoutError:
            if not patience.expired():
                raise
            continue
        except BusRefused:
            if ports.clock.monotonic_s() - began_s > REFUSED_S:
                raise
            await asyncio.sleep(REFUSED_AGAIN_S)
            continue
        if url in joined.urls[1:]:
            joined = replace(joined, urls=[url, *(other for other in joined.urls if other != url)])
            save(ports.files, directory, joined)
        return joined
    raise AssertionError("a cycle never ends")


async def enrol(
    ports: Ports,
    directory: Path,
    identity: Identity,
    bus: Bus,
    attempt: Attempt | None = None,
    *,
    connected: Callable[[], object] = lambda: None,
) -> Identity:
    """Join with what `prepare` made, over ``bus`` (not entered yet); returns once the device is active.

    Waits as long as it takes: callers set a deadline. May be repeated after any failure. ``connected`` is
    called when the bus is. Raises `TokenRefused` (definitely not enrolled), `broker.bus.BusRefused`.
    """
    try:
        async with bus:
            try:
                return await _enrol(ports, directory, identity, bus, _announced(bus.incoming(), connected))
            finally:
                if attempt is not None:
                    attempt.problem = bus.problem
    except BaseExceptionGroup as group_error:
        raise service.innermost(group_error) from group_error


async def _enrol(ports: Ports, directory: Path, identity: Identity, bus: Bus, arrivals: Arrivals) -> Identity:
    if not identity.key_set:
        identity = await _welcome(identity, bus, arrivals)
        save(ports.files, directory, identity)
    if not identity.active:
        sequencer = Sequencer(ports.files, directory / SEQUENCE_FILE)
        mailbox = Mailbox(bus, identity.federation, identity.signing, sequencer, ports.entropy)
        await _prove(identity, mailbox, bus, arrivals)
        identity = replace(identity, active=True)
        save(ports.files, directory, identity)
    return identity


async def _announced(arrivals: Arrivals, connected: Callable[[], object]) -> Arrivals:
    async for arrival in arrivals:
        if isinstance(arrival, Connected):
            connected()
        yield arrival


async def _welcome(identity: Identity, bus: Bus, arrivals: Arrivals) -> Identity:
    token = identity.pending_token()
    if token is None:
        raise TokenRefused("this directory holds no token any more; ask the operator for a new one")
    join = identity.join(token)

    async def send() -> None:
        await bus.publish(identity.up_topic, seal_join(join, token, identity.signing))

    async with asyncio.TaskGroup() as group:
        sending = group.create_task(_again_and_again(send), name="join")
        async for arrival in arrivals:
            if isinstance(arrival, Connected) or not arrival.payload.startswith(WELCOME_MAGIC):
                continue
            try:
                member = open_welcome(arrival.payload, identity.box, join)
                joined = adopt(identity, member)
            except TokenRefused:
                await arrival.ack()
                raise
            except WireError as error:
                log.warning("a welcome was not taken: %s", error)
                await arrival.ack()
                continue
            await arrival.ack()
            sending.cancel()
            return joined
    raise AssertionError("a bus never ends")


async def _prove(identity: Identity, mailbox: Mailbox, bus: Bus, arrivals: Arrivals) -> None:
    keys = identity.keys()

    async def send() -> None:
        await mailbox.send(identity.up_topic, keys.box, ChallengeAnswer(challenge=identity.challenge))

    async with asyncio.TaskGroup() as group:
        sending = group.create_task(_again_and_again(send), name="challenge answer")
        async for arrival in arrivals:
            if isinstance(arrival, Connected):
                continue
            if arrival.payload.startswith(WELCOME_MAGIC):
                await arrival.ack()
                continue
            # Anything but "enrolled" stays unacknowledged: the resident will get it, and its replay window.
            with suppress(WireError):
                envelope = parse(arrival.payload)
                opened = read(envelope, keys.signing, Window(), identity.box, identity.federation)
                if isinstance(decode_from_coordinator(opened.inner), Enrolled):
                    await arrival.ack()
                    sending.cancel()
                    return


async def _again_and_again(send: Callable[[], Awaitable[None]]) -> None:
    delay_s = RESEND_FIRST_S
    while True:
        with suppress(BusUndelivered):
            await send()
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, RESEND_CAP_S)
