"""Small experiments with the broker, over sessions of their own beside the coordinator's: nothing here
touches its queue, and nothing stays at the broker.

Each needs the topic `schemas.topics.probe`, where the coordinator's user may read and write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from broker.bus import Bus, BusError, BusUndelivered, Connected, Credentials, Delivery
from broker.connect import connect
from broker.ports import Ports
from broker.service import innermost
from coordinator.config import Config
from coordinator.connection import PROBES, credentials, probe
from coordinator.keystore import Identity
from schemas import topics
from schemas.ids import DeviceId, broker_user

LOCK: Final = "doctor.lock"
CONNECT_S: Final = 15.0
ANSWER_S: Final = 3.0
SHARED_S: Final = 2.0
"""A session that was pushed out is back within this time."""
SERIES_S: Final = 120.0
MARK_S: Final = 0.25
"""How often the end of a series is marked, until a mark comes back: a full queue drops marks, too."""
SENDERS: Final = 20
STALL_SAMPLES: Final = 9
BRAND_TOPIC: Final = "$SYS/broker/version"
NOBODY: Final = DeviceId("doctor")

_RUN_BYTES: Final = 8
_NUMBER_BYTES: Final = 4
_MARK: Final = 2 ** (8 * _NUMBER_BYTES) - 1


class ProbeFailed(Exception):
    """An experiment came to no result. The text says why."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a message. ``refused``: the sender was told that it was not taken; ``hung_up``: the
    broker ended the connection, perhaps behind an acknowledgement."""

    arrived: bool
    refused: bool
    hung_up: bool


class Session:
    """A connected probe and its one reader. ``early`` is what came before the connection was told."""

    def __init__(
        self, bus: Bus, arrivals: AsyncIterator[Delivery | Connected], early: Sequence[Delivery]
    ) -> None:
        self.bus = bus
        self._arrivals = arrivals
        self._early = deque(early)
        self.reconnected = 0

    async def next(self) -> Delivery:
        """The next message."""
        while True:
            item = self._early.popleft() if self._early else await anext(self._arrivals)
            if not isinstance(item, Connected):
                return item
            self.reconnected += 1

    async def stirs(self) -> bool:
        """Whether it is not ours alone: a message comes, for which it did not ask, or it is pushed out again
        and again. Once may be the end of the broker. The session is of no use then."""
        if self._early:
            return True
        with suppress(TimeoutError):
            for _ in range(2):
                async with asyncio.timeout(SHARED_S):
                    if not isinstance(await anext(self._arrivals), Connected):
                        return True
            return True
        return False

    async def take(self) -> bytes:
        """The next message, acknowledged."""
        delivery = await self.next()
        await delivery.ack()
        return delivery.payload


class Probes:
    """Experiments as the coordinator's user. One at a time, and one such object at a time per federation:
    the caller holds `LOCK`. ``url`` is another door of the broker than the coordinator's. All but `session`
    raise `ProbeFailed` or `broker.bus.BusRefused`."""

    def __init__(
        self, directory: Path, config: Config, identity: Identity, ports: Ports, url: str = ""
    ) -> None:
        self._url = url or config.broker
        self._config = config
        self._ports = ports
        self._own = credentials(directory, config, identity, ports)
        self._federation = identity.federation
        self._run = ports.entropy.random_bytes(_RUN_BYTES)  # tells our messages from older ones
        self.topic = topics.probe(identity.federation)
        self.user = probe(self._own, config).username or ""

    @asynccontextmanager
    async def session(
        self, subscriptions: Sequence[str] = (), *, suffix: str = "", durable: bool = False
    ) -> AsyncIterator[Session]:
        """A session beside the coordinator's own, connected. Raises `ProbeFailed` when that takes longer than
        `CONNECT_S`, `broker.bus.BusRefused`."""
        own = probe(self._own, self._config, suffix, durable=durable)
        async with self._entered(own, subscriptions) as session:
            yield session

    @asynccontextmanager
    async def _entered(self, own: Credentials, subscriptions: Sequence[str]) -> AsyncIterator[Session]:
        async with connect(self._url, own, subscriptions, ports=self._ports) as bus:
            arrivals = bus.incoming()
            early: list[Delivery] = []
            try:
                async with asyncio.timeout(CONNECT_S):
                    while not isinstance(item := await anext(arrivals), Connected):
                        early.append(item)
            except TimeoutError as error:
                raise ProbeFailed(bus.problem or f"no session within {CONNECT_S:g} s") from error
            yield Session(bus, arrivals, early)

    async def shared(self) -> bool:
        """Whether the broker names sessions after their user: ours take the place of each other, and of the
        coordinator's. Both here are durable, so that what waits in that one stays."""
        async with self.session(durable=True) as first, self.session(suffix="-away", durable=True):
            if await first.stirs():
                return True
        for suffix in PROBES:
            async with self.session(suffix=suffix):
                pass  # and forgotten
        return False

    async def may_subscribe(self) -> None:
        """Log in and subscribe as the coordinator does."""
        async with self.session([topics.all_up(self._federation)]):
            pass

    async def anonymous(self) -> bool:
        """Whether the broker lets in who shows neither name, password nor certificate."""
        name = broker_user(self._federation, "nobody-probe")
        nobody = Credentials(name, tls=replace(self._own.tls, certificate=None, key=None), durable=False)
        try:
            async with asyncio.timeout(ANSWER_S), self._entered(nobody, ()):
                return True
        except (BusError, ProbeFailed, TimeoutError):
            return False

    async def brand(self) -> str:
        """What an MQTT broker says that it is, if it lets us read that; else empty. Never raises."""
        with suppress(BusError, ProbeFailed, TimeoutError):
            async with asyncio.timeout(ANSWER_S), self.session([BRAND_TOPIC]) as session:
                return (await session.take()).decode("utf-8", "replace")
        return ""

    async def echo(self) -> None:
        """Publish a message and get it back, within `ANSWER_S`: without that, nothing else can be tried."""
        async with self.session([self.topic]) as session:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._fate(session, self.topic, 0)
            except TimeoutError as error:
                problem, _, _ = session.bus.problem.partition("; ")
                silent = f"what we publish on {self.topic} does not come back"
                raise ProbeFailed(f"{silent} ({problem})" if problem else silent) from error

    async def carried(self, size_bytes: int) -> Fate:
        """Send a message of this size to a session that is there."""
        async with self.session([self.topic]) as session:
            return await self._fate(session, self.topic, size_bytes)

    async def denied(self) -> Fate:
        """Publish where a device speaks, which the coordinator's user must not."""
        topic = topics.up(self._federation, NOBODY)
        async with self.session([self.topic, topic]) as session:
            return await self._fate(session, topic, 0)

    async def held(self, count: int, size_bytes: int) -> int:
        """How many of ``count`` messages the broker keeps for a session that is away."""
        try:
            async with self.session([self.topic], suffix="-away", durable=True):
                pass
            async with self.session() as sender:
                await self._send(sender.bus, count, size_bytes)
            async with self.session([self.topic], suffix="-away", durable=True) as session:
                return await self._received(session)
        finally:
            with suppress(BusError, ProbeFailed):
                async with self.session(suffix="-away"):
                    pass  # a session that is not durable takes the other's place, and is forgotten

    async def stall_s(self) -> float:
        """How far apart the broker's answer to a message and that message itself arrive, when both go to one
        connection: the median. With Nagle's algorithm (RFC 896) at the broker, the second of two small writes
        waits for the receiver's acknowledgement of the first, which its kernel holds back for 40 ms."""
        now_s = self._ports.clock.monotonic_s
        gaps_s = []
        async with self.session([self.topic]) as session:
            for number in range(STALL_SAMPLES):
                answered: list[float] = []

                async def speak(text: bytes, answered: list[float] = answered) -> None:
                    await session.bus.publish(self.topic, text)
                    answered.append(now_s())

                async with _within(ANSWER_S, "an echo"), asyncio.TaskGroup() as group:
                    group.create_task(speak(self._message(number)), name="speak")
                    delivery = await session.next()
                    heard_s = now_s()
                await delivery.ack()  # not before: it would carry the acknowledgement that is held back
                gaps_s.append(abs(heard_s - answered[0]))
        return median(gaps_s)

    async def _fate(self, session: Session, topic: str, size_bytes: int) -> Fate:
        refused: list[BusError] = []

        async def speak() -> None:
            try:
                await session.bus.publish(topic, self._message(0, size_bytes))
            except BusUndelivered as error:
                refused.append(error)

        arrived = await self._received(session, speak())
        return Fate(arrived > 0, bool(refused), session.reconnected > 0)

    async def _send(self, bus: Bus, count: int, size_bytes: int) -> None:
        """Send numbered messages; those that the broker says it did not take are lost like all others."""
        numbers = iter(range(count))

        async def some() -> None:
            for number in numbers:
                with suppress(BusUndelivered):
                    await bus.publish(self.topic, self._message(number, size_bytes))

        async with _within(SERIES_S, f"{count} messages of {size_bytes} bytes"), asyncio.TaskGroup() as group:
            for _ in range(min(count, SENDERS)):
                group.create_task(some(), name="send")

    async def _received(
        self, session: Session, sending: Coroutine[object, object, None] | None = None
    ) -> int:
        """How many different messages arrive before a mark that is sent behind them."""
        numbers: set[int] = set()

        async def mark() -> None:
            if sending is not None:
                await sending
            while True:
                with suppress(BusUndelivered):
                    await session.bus.publish(self.topic, self._message(_MARK))
                await asyncio.sleep(MARK_S)

        async with _within(SERIES_S, "the end of a series"), asyncio.TaskGroup() as group:
            marking = group.create_task(mark(), name="mark")
            while (number := self._number(await session.take())) != _MARK:
                if number is not None:
                    numbers.add(number)
            marking.cancel()
        return len(numbers)

    def _message(self, number: int, size_bytes: int = 0) -> bytes:
        return (self._run + number.to_bytes(_NUMBER_BYTES, "big")).ljust(size_bytes, b"\0")

    def _number(self, payload: bytes) -> int | None:
        """The number in a message of this run."""
        if not payload.startswith(self._run):
            return None
        return int.from_bytes(payload[_RUN_BYTES:][:_NUMBER_BYTES], "big")


@asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    """A deadline; the first error of a group comes out by itself."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ProbeFailed(f"{what} did not come through within {seconds:g} s") from error
    except BaseExceptionGroup as group_error:
        raise innermost(group_error) from group_error
