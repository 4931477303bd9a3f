"""AMQP 0-9-1, as RabbitMQ speaks it, as a bus.

A session is a durable quorum queue of the name ``client_id``. It is declared with `QUEUE_ARGUMENTS` when a
federation or device is set up, and never by the bus: a quorum queue that is declared seconds before a crash
can be left without a leader for ever. The bus binds it to the exchange ``amq.topic`` for its subscriptions,
at each connection. Topics are routing keys with ``.`` for ``/``, filters are binding keys with ``*`` for
``+``, as in RabbitMQ's MQTT plugin: devices may speak MQTT and the coordinator AMQP. Hence no ``.`` inside a
topic level.

Permissions that the user needs: *configure* none; *write* and *read* ``^(QUEUE|amq\\.topic)$`` (to bind
takes write on the queue and read on the exchange, to consume takes read on the queue, to publish takes write
on the exchange). Topic permissions for ``amq.topic``, where there are any, are asked for each published key
(write) and each binding key (read). A session that is not durable is an exclusive queue, which ends with its
connection; it takes *configure* on its name, too.

What holds beyond `broker.bus`: publishing returns when every queue that wants the message has it, on the
disks of most nodes, and raises `BusUndelivered` when nobody listens to the topic, a queue for it is full, or
the user may not publish there. Never more than the window is delivered without acknowledgement. What was not
acknowledged comes again in order; what was acknowledged just before a break may come again, too. A delivery
that waits longer for its acknowledgement than the broker's ``consumer_timeout`` (30 minutes) breaks the
connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

from broker.amqp_channels import FAILURES, Consumer, Presence, Publisher
from broker.amqp_connection import CLOSE_DEADLINE_S, Address, AmqpConnection, dial, user_of
from broker.bus import Bus, BusError, BusLost, Credentials
from broker.lifeline import Lifeline
from broker.ports import Clock, Entropy
from broker.reconnecting import WINDOW_DELIVERIES, Inbox, ReconnectingBus
from broker.tls import tls_context

EXCHANGE: Final = "amq.topic"
QUEUE_BYTES_MAX: Final = 512 << 20
"""What may wait in one session's queue; beyond it the broker refuses messages instead of dropping any."""
QUEUE_ARGUMENTS: Final[dict[str, str | int]] = {
    "x-queue-type": "quorum",
    "x-overflow": "reject-publish",
    "x-max-length-bytes": QUEUE_BYTES_MAX,
}
"""A durable session's queue is declared with these."""
SUBSCRIBE_DEADLINE_S: Final = 30.0
KEY_BYTES_MAX: Final = 255

_log = logging.getLogger(__name__)


def routing_key(topic: str) -> str:
    """Raises `BusError` for a topic that AMQP cannot carry."""
    if "." in topic:
        raise BusError(f"topic {topic}: on AMQP a dot would part a level in two; use names without dots")
    key = topic.replace("/", ".")
    if len(key.encode()) > KEY_BYTES_MAX:
        raise BusError(f"topic {topic}: AMQP carries {KEY_BYTES_MAX} bytes at most; use shorter names")
    return key


def binding_key(topic_filter: str) -> str:
    """The same for an MQTT topic filter."""
    return routing_key(topic_filter).replace("+", "*")


def amqp_bus(
    host: str,
    port: int,
    credentials: Credentials,
    subscriptions: Iterable[str],
    *,
    clock: Clock,
    entropy: Entropy,
    vhost: str = "/",
    secure: bool = False,
    window_deliveries: int = WINDOW_DELIVERIES,
) -> Bus:
    """A bus over AMQP; the module says what it promises and how the broker must be set up.

    A refused login, virtual host or binding and a missing queue are final for this object. Without
    subscriptions it only publishes and needs no queue. Raises `BusError` for a filter that AMQP cannot carry
    and for certificate files that cannot be used; publishing raises it for such a topic.
    """
    bindings = [binding_key(topic_filter) for topic_filter in subscriptions]
    address = Address(host, port, vhost, secure)
    if secure:
        tls_context(credentials.tls)  # each connection reads the files again
    return ReconnectingBus(
        address.name,
        lambda inbox: _AmqpLink(address, credentials, bindings, inbox, window_deliveries),
        clock=clock,
        entropy=entropy,
        window_deliveries=window_deliveries,
    )


class _AmqpLink:
    """Two connections: a memory alarm stops those that publish, and acknowledgements must get through."""

    def __init__(
        self,
        address: Address,
        credentials: Credentials,
        bindings: Sequence[str],
        inbox: Inbox,
        window_deliveries: int,
    ) -> None:
        self.problem = ""
        self._address = address
        self._credentials = credentials
        self._bindings = bindings
        self._inbox = inbox
        self._window_deliveries = window_deliveries
        self._line = Lifeline()
        self._presence = Presence(address.name, user_of(credentials), self._line)
        self._connections: list[AmqpConnection] = []
        self._publisher: Publisher | None = None
        self._consumer: Consumer | None = None

    async def open(self) -> None:
        if self._bindings:
            self._consumer = Consumer(await self._dial("consumes"), self._presence, self._inbox)
        publisher = Publisher(await self._dial("publishes"), self._presence)
        await self._line.unless_lost(publisher.channel())
        self._publisher = publisher

    async def _dial(self, role: str) -> AmqpConnection:
        connection = await dial(
            self._address,
            self._credentials,
            role,
            broken=lambda cause: self._presence.lose(
                f"the connection broke: {cause or 'no sign of life'}", cause
            ),
            blocked=self._on_blocked,
        )
        self._connections.append(connection)
        return connection

    async def subscribe(self) -> None:
        if self._consumer is None:
            return
        queue = self._credentials.client_id
        try:
            async with asyncio.timeout(SUBSCRIBE_DEADLINE_S):
                await self._line.unless_lost(
                    self._consumer.start(
                        queue,
                        [(EXCHANGE, key) for key in self._bindings],
                        durable=self._credentials.durable,
                        prefetch=self._window_deliveries,
                    )
                )
        except TimeoutError as error:
            raise BusLost(
                f"{self._address.name}: queue {queue}: no answer within {SUBSCRIBE_DEADLINE_S:g} s; "
                "`rabbitmq-queues quorum_status` says whether it has a leader"
            ) from error

    async def publish(self, topic: str, payload: bytes) -> bool:
        publisher, key = self._publisher, routing_key(topic)
        return publisher is not None and await publisher.send(EXCHANGE, key, topic, payload)

    async def ended(self) -> BusLost:
        async with asyncio.TaskGroup() as group:
            if self._consumer is not None:
                acks = group.create_task(
                    self._consumer.send_acks(), name=f"acknowledge: {self._address.name}"
                )
            loss = await self._line.ended()
            if self._consumer is not None:
                acks.cancel()
        return loss

    async def close(self) -> None:
        politely = not self._line.lost
        self._line.cut(BusLost(f"{self._address.name}: the bus was closed"))
        async with AsyncExitStack() as stack:
            for connection in self._connections:
                stack.push_async_callback(connection.hang_up, politely=politely)
            if politely and self._consumer is not None:
                with suppress(TimeoutError, *FAILURES):
                    async with asyncio.timeout(CLOSE_DEADLINE_S):
                        await self._consumer.finish()

    def acknowledge(self, tag: int) -> None:
        if self._consumer is not None:
            self._consumer.acknowledge(tag)

    def _on_blocked(self, reason: str) -> None:
        name = self._address.name
        if reason:
            self.problem = (
                f"{name}: RabbitMQ blocks publishers: memory or disk alarm ({reason}); free some there or "
                "raise the limit (`rabbitmq-diagnostics alarms` names it)"
            )
            _log.warning("%s", self.problem)
        else:
            self.problem = ""
            _log.info("%s: RabbitMQ lets publishers go on", name)
