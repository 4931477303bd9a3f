"""What is done over AMQP connections: publish with confirmation, consume with acknowledgement."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from pamqp.commands import Basic

from broker.amqp_connection import AmqpConnection
from broker.bus import BusLost, BusRefused, BusUndelivered
from broker.lifeline import Lifeline
from broker.reconnecting import Inbox

FAILURES: Final = (AMQPError, RuntimeError, ConnectionError)
"""What aiormq raises on a connection or channel that is closed or breaks."""

SAID_MAX: Final = 256
"""Complaints about messages that are remembered, so that each is logged once per connection."""

_PERSISTENT: Final = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Presence:
    """Who we are at which broker, and whether its connections stand."""

    broker: str
    user: str
    line: Lifeline

    def lose(self, what: str, cause: BaseException | None) -> None:
        """The connections are good for nothing any more."""
        loss = BusLost(f"{self.broker}: {what}; the bus connects again")
        loss.__cause__ = cause
        self.line.cut(loss)

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Translates the errors of aiormq: raises `BusLost`, `BusRefused`."""
        try:
            yield
        except ChannelNotFoundEntity as error:
            # Also said of a queue whose node is down, in other words.
            if "no queue" not in str(error):
                raise BusLost(f"{self.broker}: {what} is not available now: {error}") from error
            raise BusRefused(
                f"{self.broker}: {what} is missing; `fedbus-coordinator broker rabbitmq` declares it"
            ) from error
        except ChannelAccessRefused as error:
            raise BusRefused(
                f"{self.broker}: {what}: user {self.user!r} lacks a right: {error}; "
                "`fedbus-coordinator broker rabbitmq` grants it"
            ) from error
        except FAILURES as error:
            raise self.loss(what, error) from error

    def loss(self, what: str, error: BaseException) -> BusLost:
        """How the connection was lost, if it was; otherwise that this one thing was."""
        if self.line.lost:
            return self.line.loss()
        return BusLost(f"{self.broker}: {what}: {error}; it is tried again")


class Publisher:
    """Publishes with confirmation; what waits for its answer does not hold up the rest."""

    def __init__(self, connection: AmqpConnection, presence: Presence) -> None:
        self._connection = connection
        self._presence = presence
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._said: deque[str] = deque(maxlen=SAID_MAX)

    async def channel(self) -> AbstractChannel:
        """The one to publish on: a new one if the last was closed for a message that was refused."""
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                with self._presence.explained("publishing"):
                    self._channel = await self._connection.channel(on_return_raises=True)
            return self._channel

    async def send(self, exchange: str, key: str, topic: str, payload: bytes) -> bool:
        """False when the message definitely was not sent because the connection is gone. Raises `BusLost`,
        `BusUndelivered`."""
        line = self._presence.line
        while not line.lost:
            channel = await line.unless_lost(self.channel())
            try:
                await line.unless_lost(self._send(channel, exchange, key, topic, payload))
            except ChannelInvalidStateError:
                # The broker closed it before this message went out. aiormq needs some turns to follow.
                await line.unless_lost(asyncio.wait([channel.closing]))
            else:
                return True
        return False

    async def _send(
        self, channel: AbstractChannel, exchange: str, key: str, topic: str, payload: bytes
    ) -> None:
        properties = Basic.Properties(delivery_mode=_PERSISTENT)
        try:
            await channel.basic_publish(
                payload, exchange=exchange, routing_key=key, properties=properties, mandatory=True
            )
        except ChannelInvalidStateError:
            raise
        except PublishError as error:
            raise self._undelivered(f"nobody listens to {topic}; is its reader set up?") from error
        except DeliveryError as error:
            raise self._undelivered(
                f"a queue for {topic} is full; it empties when its reader runs"
            ) from error
        except ChannelAccessRefused as error:
            # The broker closes the channel, and other messages go with it.
            if not any(
                f"access to {what}" in str(error) for what in (f"topic '{key}'", f"exchange '{exchange}'")
            ):
                raise self._presence.loss("another message was refused", error) from error
            user = self._presence.user
            raise self._undelivered(
                f"user {user!r} may not publish to {topic}; check the access rules"
            ) from error
        except FAILURES as error:
            raise self._presence.loss("publishing", error) from error

    def _undelivered(self, what: str) -> BusUndelivered:
        """Logged once: senders try again for as long as it takes."""
        text = f"{self._presence.broker}: {what}"
        if text not in self._said:
            self._said.append(text)
            _log.warning("%s", text)
        return BusUndelivered(text)


class Consumer:
    """Reads one queue into an inbox."""

    def __init__(self, connection: AmqpConnection, presence: Presence, inbox: Inbox) -> None:
        self._connection = connection
        self._presence = presence
        self._inbox = inbox
        self._channel: AbstractChannel | None = None
        self._queue = ""
        self._acked = self._told = 0
        self._ack_wanted = asyncio.Event()

    async def start(
        self, queue: str, bindings: Iterable[tuple[str, str]], *, durable: bool, prefetch: int
    ) -> None:
        """Bind the queue (pairs of exchange and key) and consume it. Raises `BusLost`, `BusRefused`."""
        self._queue = queue
        with self._presence.explained(f"queue {queue}"):
            self._channel = channel = await self._connection.channel()
            channel.closing.add_done_callback(self._on_closed)
            channel.on_consumer_cancel_callbacks.add(self._on_cancelled)
            if durable:
                await channel.queue_declare(queue, passive=True)
            else:
                await channel.queue_declare(queue, exclusive=True, auto_delete=True)
            for exchange, key in bindings:
                await channel.queue_bind(queue, exchange, key)
            await channel.basic_qos(prefetch_count=prefetch)
            await channel.basic_consume(queue, self._on_message)

    def acknowledge(self, tag: int) -> None:
        """Tags come in the order of receipt; `send_acks` tells the broker."""
        self._acked = tag
        self._ack_wanted.set()

    async def send_acks(self) -> None:
        """Tell the broker what is acknowledged, for ever."""
        while True:
            await self._ack_wanted.wait()
            self._ack_wanted.clear()
            with suppress(*FAILURES):
                await self._tell()

    async def finish(self) -> None:
        """Tell the rest; the connection's goodbye would overtake it."""
        await self._tell()
        await self._connection.write_queue.join()

    async def _tell(self) -> None:
        if self._channel is not None and self._acked > self._told:
            self._told = self._acked
            await self._channel.basic_ack(self._told, multiple=True, wait=False)

    async def _on_message(self, message: DeliveredMessage) -> None:
        topic = (message.routing_key or "").replace(".", "/")
        self._inbox.receive(topic, message.body, message.delivery_tag)

    def _on_cancelled(self, _: Basic.Cancel) -> None:
        what = f"the broker ended the deliveries: queue {self._queue} was deleted or lost its leader"
        self._presence.lose(what, None)

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        cause = None if closing.cancelled() else closing.exception()
        if isinstance(cause, ChannelPreconditionFailed) and "timed out" in str(cause):
            what = (
                f"a delivery was not acknowledged within the broker's consumer_timeout ({cause}); see what "
                "holds it up here (disk, load), or raise that in rabbitmq.conf"
            )
        else:
            what = f"the broker ended the deliveries: {cause}"
        self._presence.lose(what, cause)
