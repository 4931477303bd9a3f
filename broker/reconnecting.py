"""What every bus over a real network needs: reconnection, the window, acknowledgements in order.

A transport gives a `Link`, one connection from its opening to its end; `ReconnectingBus` makes a `Bus` of
one link after another. What a reader may rely on beyond `broker.bus`: what arrived before a break is still
handed out after it (acknowledging it then has no effect), and a session's queued messages may come *before*
the `Connected` of their connection, because some brokers grant subscriptions only once that queue is empty.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Protocol, Self

from broker.bus import BusError, BusLost, BusRefused, Connected, Delivery
from broker.pacing import return_window_s
from broker.ports import Clock, Entropy

WINDOW_DELIVERIES = 64
"""Deliveries handed out without an acknowledgement before the flow stops; the broker's own window may be
smaller. What a broker without a window sends beyond it waits in memory here."""

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 30.0
STABLE_S = 5.0
"""A connection that stood this long starts the back-off anew when it breaks."""

_log = logging.getLogger(__name__)


class Link(Protocol):
    """One connection, never used again once it broke."""

    @property
    def problem(self) -> str:
        """Why the connection that stands carries nothing now, in one line; empty if it does."""

    async def open(self) -> None:
        """Raises `BusLost` when there is no connection, `BusRefused` when the broker will not have us."""

    async def subscribe(self) -> None:
        """Returns when all is granted. Raises `BusLost`, `BusRefused`."""

    async def publish(self, topic: str, payload: bytes) -> bool:
        """False when the message definitely was not sent, for want of a connection. Raises `BusLost` when
        nobody knows, `BusUndelivered` when the broker did not take it."""

    async def ended(self) -> BusLost:
        """Waits for the break and says how it came."""

    async def close(self) -> None:
        """Free everything, whatever state it is in, within a bounded time."""

    def acknowledge(self, tag: int) -> None:
        """Let the broker forget the delivery with this tag. Errors are the break's business."""


class Inbox:
    """Where a link puts what it receives: the deliveries of one connection."""

    def __init__(
        self, number: int, arrive: Callable[[_LinkDelivery], None], wake: Callable[[], None]
    ) -> None:
        self.number = number
        self._arrive = arrive
        self._wake = wake
        self._link: Link | None = None
        self._unacked: deque[_LinkDelivery] = deque()

    def receive(self, topic: str, payload: bytes, tag: int | None) -> None:
        """``tag`` is what the link wants back as acknowledgement; None if the sender expects none."""
        self._arrive(_LinkDelivery(self, topic, payload, tag))

    def open(self, link: Link) -> None:
        self._link = link

    def close(self) -> None:
        """The connection is gone: acknowledgements have no effect any more."""
        self._link = None
        self._unacked.clear()

    def hand_out(self, delivery: _LinkDelivery, window_deliveries: int) -> bool:
        """Whether the reader may have it now. If so, it counts against the window until acknowledged."""
        if self._link is None:
            return True
        if len(self._unacked) >= window_deliveries:
            return False
        self._unacked.append(delivery)
        return True

    def flush_acks(self) -> None:
        """Acknowledge from the oldest on, as far as the reader has: brokers want the order of receipt."""
        while self._link is not None and self._unacked and self._unacked[0].acked:
            tag = self._unacked.popleft().tag
            if tag is not None:
                self._link.acknowledge(tag)
        self._wake()


class _LinkDelivery:
    __slots__ = ("_inbox", "acked", "payload", "tag", "topic")

    def __init__(self, inbox: Inbox, topic: str, payload: bytes, tag: int | None) -> None:
        self._inbox = inbox
        self.topic = topic
        self.payload = payload
        self.tag = tag
        self.acked = False

    @property
    def connection(self) -> int:
        return self._inbox.number

    def hand_out(self, window_deliveries: int) -> bool:
        return self._inbox.hand_out(self, window_deliveries)

    async def ack(self) -> None:
        if not self.acked:
            self.acked = True
            self._inbox.flush_acks()


class ReconnectingBus:
    """A `Bus` of one link after another.

    A refusal is final for this object: the caller decides whether to make a new one. Everything else is
    retried for ever, at intervals that grow up to ``retry_max_s``, at first within `return_window_s` of at
    most ``return_max_s``. ``name`` is the broker as error messages call it.
    """

    def __init__(
        self,
        name: str,
        dial: Callable[[Inbox], Link],
        *,
        clock: Clock,
        entropy: Entropy,
        window_deliveries: int,
        retry_max_s: float = RETRY_MAX_S,
        return_max_s: float = 0.0,
    ) -> None:
        self._name = name
        self._dial = dial
        self._clock = clock
        self._entropy = entropy
        self._window_deliveries = window_deliveries
        self._retry_max_s = retry_max_s
        self._return_max_s = return_max_s
        self._group = asyncio.TaskGroup()
        self._supervisor: asyncio.Task[None] | None = None
        # The link that stands; None while there is none; an error when there will be none again.
        self._state: Link | BusError | None = self._outside()
        self._problem = f"{name}: not connected yet"
        self._connections = 0
        self._stands_since_s = math.inf
        self._granted = 0
        self._arrived: deque[_LinkDelivery | Connected] = deque()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._state = None
        await self._group.__aenter__()
        self._supervisor = self._group.create_task(self._supervise(), name=f"bus: {self._name}")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
        # Only a cancellation concerns the group; any other error of the body passes by unwrapped.
        if isinstance(exc, asyncio.CancelledError):
            await self._group.__aexit__(exc_type, exc, traceback)
        else:
            await self._group.__aexit__(None, None, None)

    @property
    def problem(self) -> str:
        if isinstance(self._state, BusError):
            return str(self._state)
        return self._problem or (self._state.problem if self._state is not None else "")

    async def incoming(self) -> AsyncIterator[Delivery | Connected]:
        while True:
            if self._arrived:
                item = self._arrived[0]
                if isinstance(item, Connected) or item.hand_out(self._window_deliveries):
                    yield self._arrived.popleft()
                    continue
            elif isinstance(self._state, BusError):
                raise _again(self._state)
            await self._changed.wait()

    async def publish(self, topic: str, payload: bytes) -> None:
        while True:
            state = self._state
            if isinstance(state, BusError):
                raise _again(state)
            if state is not None and await state.publish(topic, payload):
                return
            if self._state is state:
                await self._changed.wait()

    async def _supervise(self) -> None:
        failures, said, window_s = 0, "", 0.0
        try:
            while True:
                # From when it stands, not from the dialling: a broker that does not answer takes long, too.
                self._stands_since_s = math.inf
                try:
                    await self._connect_once()
                except BusRefused as refused:
                    self._become(refused)
                    return
                except BusLost as lost:
                    # The same cause again is no news; every try stays visible to who looks closer.
                    _log.log(logging.DEBUG if str(lost) == said else logging.WARNING, "%s", lost)
                    said = str(lost)
                stood_s = self._clock.monotonic_s() - self._stands_since_s
                if stood_s >= STABLE_S:
                    failures, said, window_s = 0, "", return_window_s(stood_s, self._return_max_s)
                jitter = int.from_bytes(self._entropy.random_bytes(2)) / 65_535
                await asyncio.sleep(max(pause_s(failures, self._retry_max_s, jitter), jitter * window_s))
                failures += 1
        finally:
            if not isinstance(self._state, BusRefused):
                self._become(self._outside())

    async def _connect_once(self) -> None:
        """One connection from its beginning to its end. Raises `BusLost` or `BusRefused`."""
        inbox = Inbox(self._connections + 1, self._arrive, self._wake)
        link = self._dial(inbox)
        try:
            inbox.open(link)
            await link.open()
            self._stands_since_s = self._clock.monotonic_s()
            self._connections = inbox.number
            self._forget_old_arrivals()
            # Sending may begin before the subscriptions are granted: a reader that answers before it
            # acknowledges would otherwise wait for a broker that waits for its acknowledgements.
            self._become(link)
            await link.subscribe()
            self._granted += 1
            self._problem = ""
            self._arrive(Connected(self._granted))
            raise await link.ended()
        except BusLost as lost:
            self._problem = str(lost)
            raise
        finally:
            inbox.close()
            self._become(None)
            await link.close()

    def _wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _become(self, state: Link | BusError | None) -> None:
        self._state = state
        self._wake()

    def _arrive(self, item: _LinkDelivery | Connected) -> None:
        self._arrived.append(item)
        self._wake()

    def _forget_old_arrivals(self) -> None:
        """Keep what came on the last connection only, or a sleeping reader would cost memory without end."""
        self._arrived = deque(
            item
            for item in self._arrived
            if isinstance(item, _LinkDelivery) and item.connection >= self._connections - 1
        )

    def _outside(self) -> BusError:
        return BusError(f"{self._name}: the bus is used outside `async with`")


def pause_s(failures: int, retry_max_s: float, jitter: float) -> float:
    """How long to wait after so many failures: twice as long each time, up to ``retry_max_s``.

    ``jitter`` from 0 to 1 spreads it over the upper half, so that a fleet does not return as one.
    """
    full_s = min(retry_max_s, RETRY_FIRST_S * (1 << min(failures, 16)))
    return full_s * (0.5 + jitter / 2)


def _again(error: BusError) -> BusError:
    """The same error for one more caller, with a traceback of its own."""
    fresh = type(error)(str(error))
    fresh.__cause__ = error
    return fresh
