"""A broker inside the process, for tests and simulation: exact, deterministic, without real time.

It keeps the promises of `broker.bus` to the letter: durable sessions by client id, order, an exact
window, redelivery in order of whatever was not acknowledged when a connection broke. It runs on any
event loop, also one with a virtual clock, because it waits for events only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Self

from broker.bus import BusError, BusRefused, Connected, Credentials, Delivery
from broker.filters import covers

WINDOW_DELIVERIES = 64
"""Deliveries without an acknowledgement, per connection, before the flow stops."""

SESSION_QUEUE_MESSAGES_MAX = 100_000
"""Messages queued for one session; more are dropped and counted."""

TOPICS_KNOWN_MAX = 10_000


class MemoryBroker:
    """Sessions, queues and routing. One per federation or test.

    Without ``passwords`` everybody may log in; with them (user name to password) only those users.
    ``dropped`` counts messages that a full session queue turned away.
    """

    def __init__(
        self, *, passwords: Mapping[str, str] | None = None, window_deliveries: int = WINDOW_DELIVERIES
    ) -> None:
        self.dropped = 0
        self._passwords = passwords
        self._window_deliveries = window_deliveries
        self._sessions: dict[str, _Session] = {}
        self._listeners: dict[str, list[_Session]] = {}  # by topic, as found; emptied when sessions change

    def disconnect(self, client_id: str) -> None:
        """Cut the client off until `restore`. What it did not acknowledge will come again."""
        session = self._session(client_id)
        session.cut = True
        session.detach()

    def restore(self, client_id: str) -> None:
        """Let the client connect again; its bus does so at once, if there is one."""
        session = self._session(client_id)
        session.cut = False
        session.attach()

    def queued(self, client_id: str) -> int:
        """Messages that the session holds, delivered but unacknowledged ones included."""
        session = self._session(client_id)
        return len(session.queue) + len(session.unacked)

    def _session(self, client_id: str) -> _Session:
        if client_id not in self._sessions:
            self._sessions[client_id] = _Session(self._window_deliveries)
            self._listeners.clear()
        return self._sessions[client_id]

    def _log_in(self, credentials: Credentials) -> _Session:
        if self._passwords is not None:
            known = self._passwords.get(credentials.username or "")
            if known is None or known != credentials.password:
                raise BusRefused(
                    f"memory broker: user {credentials.username!r} refused: unknown user or wrong password; "
                    "add the user to the broker's passwords"
                )
        if not credentials.durable:
            self._forget(credentials.client_id)
        return self._session(credentials.client_id)

    def _subscribe(self, session: _Session, subscriptions: tuple[str, ...]) -> None:
        if session.subscriptions != subscriptions:
            session.subscriptions = subscriptions
            self._listeners.clear()

    def _forget(self, client_id: str) -> None:
        self._sessions.pop(client_id, None)
        self._listeners.clear()

    def _route(self, topic: str, payload: bytes) -> None:
        if topic not in self._listeners:
            if len(self._listeners) >= TOPICS_KNOWN_MAX:
                self._listeners.clear()
            self._listeners[topic] = [
                session
                for session in self._sessions.values()
                if any(covers(subscription, topic) for subscription in session.subscriptions)
            ]
        for session in self._listeners[topic]:
            if len(session.queue) >= SESSION_QUEUE_MESSAGES_MAX:
                self.dropped += 1
            else:
                session.queue.append((topic, payload))
                session.wake()


class _Session:
    """What the broker keeps of one client, whether it is connected or not."""

    def __init__(self, window_deliveries: int) -> None:
        self.subscriptions: tuple[str, ...] = ()
        self.queue: deque[tuple[str, bytes]] = deque()
        self.unacked: deque[_MemoryDelivery] = deque()
        self.window_deliveries = window_deliveries
        self.cut = False
        self.owner: MemoryBus | None = None
        self.attached = False
        self.count = 0
        """Connections of the present owner so far."""
        self.changed = asyncio.Event()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def attach(self) -> None:
        if self.owner is not None and not self.cut and not self.attached:
            self.attached = True
            self.count += 1
            self.wake()

    def detach(self) -> None:
        self.attached = False
        self.queue.extendleft((delivery.topic, delivery.payload) for delivery in reversed(self.unacked))
        self.unacked.clear()
        self.wake()

    def flush_acks(self) -> None:
        while self.unacked and self.unacked[0].acked:
            self.unacked.popleft()
        if self.queue:  # for which there may have been no room in the window
            self.wake()


class _MemoryDelivery:
    __slots__ = ("_session", "acked", "payload", "topic")

    def __init__(self, session: _Session, topic: str, payload: bytes) -> None:
        self._session = session
        self.topic = topic
        self.payload = payload
        self.acked = False

    async def ack(self) -> None:
        if not self.acked:
            self.acked = True
            # After a break it stands in no window any more: then this changes nothing.
            self._session.flush_acks()


class MemoryBus:
    """A `Bus` over a `MemoryBroker`.

    A second bus with the same client id takes the session over; the first one then waits for ever.
    """

    def __init__(self, broker: MemoryBroker, credentials: Credentials, subscriptions: Iterable[str]) -> None:
        self._broker = broker
        self._credentials = credentials
        self._subscriptions = tuple(subscriptions)
        self._state: _Session | BusError = self._outside()
        self._told = 0
        """Connections that the reader has seen."""

    async def __aenter__(self) -> Self:
        try:
            session = self._broker._log_in(self._credentials)
        except BusRefused as refused:
            self._state = refused
            return self
        session.detach()
        session.owner = self
        session.count = 0
        self._broker._subscribe(session, self._subscriptions)
        self._state = session
        session.attach()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._state = self._state, self._outside()
        if isinstance(session, _Session) and session.owner is self:
            session.owner = None
            session.detach()
            if not self._credentials.durable:
                self._broker._forget(self._credentials.client_id)

    @property
    def problem(self) -> str:
        if isinstance(self._state, BusError):
            return str(self._state)
        here = self._state.owner is self and self._state.attached
        return "" if here else f"memory broker: {self._credentials.client_id} is cut off"

    async def incoming(self) -> AsyncIterator[Delivery | Connected]:
        while True:
            session = self._session()
            if session.owner is self and session.attached:
                if self._told < session.count:
                    self._told = session.count
                    yield Connected(session.count)
                    continue
                if session.queue and len(session.unacked) < session.window_deliveries:
                    delivery = _MemoryDelivery(session, *session.queue.popleft())
                    session.unacked.append(delivery)
                    yield delivery
                    continue
            await session.changed.wait()

    async def publish(self, topic: str, payload: bytes) -> None:
        # One turn of the loop, as any broker takes: a sender never starves the others.
        await asyncio.sleep(0)
        while True:
            session = self._session()
            if session.owner is self and session.attached:
                self._broker._route(topic, payload)
                return
            await session.changed.wait()

    def _session(self) -> _Session:
        match self._state:
            case BusRefused():
                raise BusRefused(str(self._state)) from self._state
            case BusError():
                raise BusError(str(self._state)) from self._state
            case _Session() as session:
                return session

    def _outside(self) -> BusError:
        return BusError(
            f"memory broker: the bus of {self._credentials.client_id} is used outside `async with`"
        )
