"""``fedbus-agent doctor``: what may keep a device from its work, measured, each finding with its remedy.

Works beside a running agent, which it does not disturb: the device's session with the broker is then the
agent's, and its state is read instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker import checkup
from broker.bus import Bus, BusError, BusLost, BusRefused, BusUndelivered, Connected, Delivery
from broker.checkup import Finding, Level, healthy
from broker.mailbox import Mailbox, Sequencer
from broker.ports import LockHeld, Ports
from broker.reach import reach
from edge_agent import config, doctor_data, identity, ledger
from edge_agent.config import Config, ConfigError
from edge_agent.identity import SEQUENCE_FILE, Identity, IdentityError
from edge_agent.ledger import Ledger, LedgerData, LedgerError
from edge_agent.listen import Ears
from edge_agent.presence import bus_for, credentials
from schemas.errors import WireError
from schemas.events import RequestRef, StateReply, StateRequest

CONNECT_S: Final = 15.0
ANSWER_S: Final = 20.0
WINDOW: Final = 10
"""Messages without an acknowledgement after which the first of the brokers (RabbitMQ) sends no more."""
MARK: Final = "doctor"

_MARK_BYTES: Final = 7  # of a number below 2**63


async def examine(directory: Path, ports: Ports, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Everything, in an order in which a fault explains what is left out behind it."""
    try:
        own = identity.load(ports.files, directory)
        data = ledger.read_ledger(ports.files, directory)
    except (IdentityError, LedgerError, OSError) as error:
        yield checkup.told("membership", error)
        return
    yield _membership(own, data)
    for finding in machine(directory, data, ports):
        yield finding
    try:
        settings = config.load(ports.files, directory, environ)
    except ConfigError as error:
        yield checkup.told("settings", error)
        return
    allowed = ", ".join(settings.policy.tasks) or "no task"
    yield Finding("settings", Level.OK, f"{directory / config.FILE} can be used; it allows {allowed}")
    async for finding in _broker(directory, own, data, settings, ports):
        yield finding
    async for finding in doctor_data.examine(directory, settings, ports):
        yield finding


def _membership(own: Identity, data: LedgerData) -> Finding:
    who = f"device {own.device} of federation {own.federation.hex()}"
    if data.revoked:
        remedy = "ask the operator for a new token and enrol in a new directory"
        return Finding("membership", Level.FAULT, f"{who} was revoked: {data.revoked}", remedy)
    if not own.active:
        remedy = "run the agent: it goes on with the enrolment by itself"
        return Finding("membership", Level.WARNING, f"{who} joined, and is not active yet", remedy)
    return Finding("membership", Level.OK, f"{who}, of entity {own.entity()}, is active")


def machine(directory: Path, data: LedgerData, ports: Ports) -> Iterator[Finding]:
    """Secret files, clock, disk."""
    requests = directory / ledger.REQUESTS_DIR
    secrets = [directory / identity.FILE, *(requests / name for name in ports.files.names(requests))]
    key = directory / config.KEPT["key"]
    secrets += [key] if ports.files.exists(key) else []
    yield checkup.secrets_kept(secrets, f"`chmod -R go-rwx {directory}`, as the user who runs the agent")
    yield checkup.clock(ports.clock.wall_s(), data.connected_wall_s, "the agent's last connection")
    yield checkup.clock_source()
    yield checkup.disk(directory)


async def _broker(
    directory: Path, own: Identity, data: LedgerData, settings: Config, ports: Ports
) -> AsyncIterator[Finding]:
    try:
        tls = credentials(own, settings, ports.files).tls
    except ConfigError as error:
        yield checkup.told("settings", error)
        return
    way = await reach(settings.broker or own.urls[0], tls, ports.clock.wall_s())
    for finding in way:
        yield finding
    if not healthy(way):
        return
    try:
        with ports.lock.hold(directory / identity.LOCK_FILE):
            for finding in await _session(directory, own, settings, ports):
                yield finding
    except LockHeld as held:
        since, now_s = "never", ports.clock.wall_s()
        if data.connected_wall_s:
            ago = checkup.span(max(now_s - data.connected_wall_s, 0.0))
            since = f"{checkup.when(data.connected_wall_s)}, {ago} ago; its log tells whether it still is"
        measured = f"an agent runs and has the device's session ({held}); it connected last: {since}"
        yield Finding("login", Level.OK if data.connected_wall_s else Level.WARNING, measured)
    except OSError as error:
        yield checkup.unwritable(directory, error)


async def _session(directory: Path, own: Identity, settings: Config, ports: Ports) -> list[Finding]:
    """Log in as the agent does, and ask the coordinator. What waits in the session is left for the agent, but
    for states of the past: the agent asks for its own."""
    async with bus_for(own, settings, ports) as bus:
        arrivals = bus.incoming()
        early: list[Delivery] = []
        try:
            async with asyncio.timeout(CONNECT_S):
                while not isinstance(item := await anext(arrivals), Connected):
                    early.append(item)
        except BusRefused as error:
            return [checkup.told("login", error)]
        except TimeoutError:
            if len(early) >= WINDOW:
                return [_full(len(early), f"no session within {CONNECT_S:g} s")]
            return [checkup.told("login", BusError(bus.problem or f"no session within {CONNECT_S:g} s"))]
        admitted = Finding("login", Level.OK, f"the broker admits this device to {own.down_topic}")
        if not own.active:  # the coordinator would not know it
            return [admitted]
        asking = _Asking(directory, own, bus, ports)
        answer = await _answer(asking, early, arrivals, ports)
        if answer.level is not Level.OK:  # without answers nothing tells that a message is stopped
            return [admitted, answer]
        return [admitted, answer, await _rules(asking, arrivals)]


class _Asking:
    """Questions for our state. Each names a request that nobody made: only an answer to *this* question says
    that it is closed, and none that waited at the broker."""

    def __init__(self, directory: Path, own: Identity, bus: Bus, ports: Ports) -> None:
        book = Ledger(ports.files, directory)
        self._ears = Ears(own, book)
        sequencer = Sequencer(ports.files, directory / SEQUENCE_FILE)
        self._mailbox = Mailbox(bus, own.federation, own.signing, sequencer, ports.entropy)
        self._mark: RequestRef | None = None
        self._entropy = ports.entropy
        self._held = [RequestRef(record.job, record.number) for record in book.held()]
        self.bus = bus
        self.directory = directory
        self.own = own
        self.waiting = 0

    async def ask(self) -> None:
        """A new question. Raises `broker.bus.BusError`, OSError."""
        self._mark = RequestRef(MARK, int.from_bytes(self._entropy.random_bytes(_MARK_BYTES), "big"))
        question = StateRequest(requests=[self._mark, *self._held], key_set=self.own.keys().number)
        await self._mailbox.send(self.own.up_topic, self.own.keys().box, question)

    async def answered(self, delivery: Delivery) -> bool:
        """Whether this is the answer. Answers to older questions are acknowledged too: they would fill the
        window of a session that only doctors look into."""
        try:
            heard = self._ears.hear(delivery.payload)
        except WireError:
            heard = None
        if not isinstance(heard, StateReply):
            self.waiting += 1
            return False
        await delivery.ack()
        return self._mark in heard.closed

    def forged(self) -> bytes:
        """What is no message of a coordinator."""
        return MARK.encode() + self._entropy.random_bytes(_MARK_BYTES)


async def _answer(
    asking: _Asking, early: list[Delivery], arrivals: AsyncIterator[Delivery | Connected], ports: Ports
) -> Finding:
    """Ask for our state: an answer needs our way up, the coordinator, and our way down."""
    for delivery in early:
        await asking.answered(delivery)
    asked_s, silent = ports.clock.monotonic_s(), f"no answer within {ANSWER_S:g} s"
    try:
        async with asyncio.timeout(ANSWER_S):
            await asking.ask()
            async for item in arrivals:
                if not isinstance(item, Connected) and await asking.answered(item):
                    took_s = ports.clock.monotonic_s() - asked_s
                    return Finding("coordinator", Level.OK, f"answers within {1_000 * took_s:.0f} ms")
    except TimeoutError:
        if asking.waiting >= WINDOW:
            return _full(asking.waiting, silent)
        cause = f"{silent}, and {asking.waiting} other messages"
    except OSError as error:  # its number could not be reserved
        return checkup.unwritable(asking.directory, error)
    except (BusUndelivered, BusRefused) as error:
        cause = checkup.bare(error)
    own = asking.own
    return Finding("coordinator", Level.FAULT, cause, SILENT.format(up=own.up_topic, down=own.down_topic))


async def _rules(asking: _Asking, arrivals: AsyncIterator[Delivery | Connected]) -> Finding:
    """Speak to ourselves in the coordinator's place. A later answer tells that it was stopped."""
    forged, shown = asking.forged(), "acknowledges it all the same: only its own log tells"
    try:
        async with asyncio.timeout(ANSWER_S):
            try:
                await asking.bus.publish(asking.own.down_topic, forged)
            except BusUndelivered:
                shown = "tells the sender"
            with suppress(BusLost):  # it is asked again
                await asking.ask()
            async for item in arrivals:
                if isinstance(item, Connected):
                    await asking.ask()  # what was on its way may be lost
                elif item.payload == forged:
                    await item.ack()
                    return Finding("access rules", Level.FAULT, f"there are none: {FORGED}", OPERATOR)
                elif await asking.answered(item):
                    break
    except OSError as error:
        measured = (
            str(error) or f"no answer within {ANSWER_S:g} s to a question behind a message to ourselves"
        )
        return Finding("access rules", Level.UNKNOWN, measured, OPERATOR)
    except (BusUndelivered, BusRefused) as error:
        return Finding("access rules", Level.UNKNOWN, checkup.bare(error), OPERATOR)
    measured = f"a message in the coordinator's place is stopped; the broker {shown}"
    return Finding("access rules", Level.OK, measured)


def _full(waiting: int, silent: str) -> Finding:
    """A broker sends no more than a window of messages that nobody acknowledges: an answer stays behind."""
    measured = f"{silent}: {waiting} messages wait for the agent and fill its window"
    remedy = "run the agent, which reads them: its log, or `fedbus-agent status`, tells whether it connects"
    return Finding("coordinator", Level.UNKNOWN, measured, remedy)


FORGED: Final = "this device may speak in the coordinator's place"
OPERATOR: Final = "ask the operator: `fedbus-coordinator doctor` names the line to change"
SILENT: Final = (
    "see that the coordinator serves (`fedbus-coordinator status`), and that the broker lets this device "
    "write {up} and read {down}"
)
