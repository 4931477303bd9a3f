"""MQTT 3.1.1 over TCP as a bus: aiomqtt with manual acknowledgements and connections that end cleanly.

The only module that knows aiomqtt, and the only place that reaches through it to paho (``_client``),
because aiomqtt 2.5 has neither manual acknowledgements nor a way to abandon a connection attempt.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from broker.bus import BusLost, BusRefused, Connected, Credentials, Delivery
from broker.ports import Clock, Entropy
from broker.reconnecting import WINDOW_DELIVERIES, Inbox, ReconnectingBus

T = TypeVar("T")

KEEPALIVE_S = 30
CONNECT_DEADLINE_S = 5.0
"""For the TCP connection alone."""
HANDSHAKE_DEADLINE_S = 15.0
"""For TCP and the broker's answer to CONNECT together."""
CLOSE_DEADLINE_S = 2.0

# CONNACK 2, 4 and 5 as paho translates them: client identifier, login, authorisation.
_REFUSALS: Final = frozenset({133, 134, 135})
_NOT_GRANTED = 0x80

_library_log = logging.getLogger("broker.mqtt.paho")
_library_log.setLevel(logging.WARNING)


class MqttBus:
    """A `Bus` over MQTT 3.1.1: persistent session, QoS 1, manual acknowledgements.

    A refused login or subscription is final for this object. What a reader may rely on beyond
    `broker.bus` stands in `broker.reconnecting`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        credentials: Credentials,
        subscriptions: Iterable[str],
        *,
        clock: Clock,
        entropy: Entropy,
        window_deliveries: int = WINDOW_DELIVERIES,
    ) -> None:
        wanted = tuple(subscriptions)
        self._bus = ReconnectingBus(
            f"broker {host}:{port}",
            lambda inbox: _MqttLink(host, port, credentials, wanted, inbox),
            clock=clock,
            entropy=entropy,
            window_deliveries=window_deliveries,
        )

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._bus.__aexit__(exc_type, exc, traceback)

    @property
    def problem(self) -> str:
        return self._bus.problem

    def incoming(self) -> AsyncIterator[Delivery | Connected]:
        return self._bus.incoming()

    async def publish(self, topic: str, payload: bytes) -> None:
        await self._bus.publish(topic, payload)


class _MqttLink:
    """One aiomqtt client, for one connection only: a reused one would send what was given up on."""

    def __init__(
        self, host: str, port: int, credentials: Credentials, subscriptions: Sequence[str], inbox: Inbox
    ) -> None:
        self._name = f"broker {host}:{port}"
        self._who = f"user {credentials.username!r} as client {credentials.client_id!r}"
        self._subscriptions = subscriptions
        self._inbox = inbox
        self._closed = False
        self._scopes: set[asyncio.Timeout] = set()
        self._client = aiomqtt.Client(
            host,
            port,
            username=credentials.username,
            password=credentials.password,
            identifier=credentials.client_id,
            clean_session=False,
            keepalive=KEEPALIVE_S,
            timeout=math.inf,
            logger=_library_log,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        # paho keeps 20 messages in flight and queues the rest: many pending calls are no reason to warn.
        self._client.pending_calls_threshold = sys.maxsize
        self._paho = self._client._client
        self._paho.connect_timeout = CONNECT_DEADLINE_S
        self._paho.manual_ack_set(True)
        self._paho.on_message = self._on_message
        self._register_socket = self._paho.on_socket_open
        self._paho.on_socket_open = self._on_socket_open
        self._end_connection = self._paho.on_disconnect
        self._paho.on_disconnect = self._on_disconnect

    async def open(self) -> None:
        # aiomqtt forgets a break that comes right behind CONNACK by replacing this future.
        early = self._client._disconnected
        try:
            async with asyncio.timeout(HANDSHAKE_DEADLINE_S):
                await self._client.__aenter__()
        except TimeoutError as error:
            cause = f"no answer within {HANDSHAKE_DEADLINE_S:g} s"
            raise BusLost(f"{self._name}: {cause}; is it an MQTT port?") from error
        except aiomqtt.MqttError as error:
            if isinstance(error, aiomqtt.MqttCodeError) and _code(error.rc) in _REFUSALS:
                raise BusRefused(
                    f"{self._name}: {self._who} refused: {error}; "
                    "check user name, password and client id with the broker's operator"
                ) from error
            raise BusLost(f"{self._name}: cannot connect: {error}; is it running and reachable?") from error
        if early.done() or self._paho.socket() is None:
            raise BusLost(f"{self._name}: the connection broke at once") from _failure(early)
        self._client._disconnected.add_done_callback(self._on_lost)

    async def subscribe(self) -> None:
        if not self._subscriptions:
            return
        wanted = [(topic, 1) for topic in self._subscriptions]
        try:
            granted = await self._unless_lost(self._client.subscribe(wanted, timeout=math.inf))
        except aiomqtt.MqttError as error:
            raise BusLost(f"{self._name}: the connection broke: {error}") from error
        answers = zip(self._subscriptions, granted, strict=True)
        if denied := [topic for topic, answer in answers if _code(answer) >= _NOT_GRANTED]:
            raise BusRefused(
                f"{self._name}: {self._who} may not subscribe to {', '.join(denied)}; "
                "check the broker's access rules for this user"
            )

    async def publish(self, topic: str, payload: bytes) -> bool:
        if self._lost():
            return False
        try:
            await self._unless_lost(self._client.publish(topic, payload, qos=1, timeout=math.inf))
        except aiomqtt.MqttCodeError as error:
            if error.rc == MQTTErrorCode.MQTT_ERR_NO_CONN:
                return False
            raise BusLost(f"{self._name}: the connection broke while sending: {error}") from error
        return True

    async def ended(self) -> BusLost:
        await asyncio.wait([self._client._disconnected])
        return self._loss()

    async def close(self) -> None:
        alive = self._paho.is_connected() and not self._lost()
        self._closed = True
        try:
            if alive:
                with suppress(TimeoutError, aiomqtt.MqttError):
                    async with asyncio.timeout(CLOSE_DEADLINE_S):
                        await self._client.__aexit__(None, None, None)
        finally:
            self._paho.disable_logger()
            self._paho._sock_close()
            # Look at every failure, or asyncio complains that nobody did.
            _failure(self._client._connected)
            _failure(self._client._disconnected)
            if self._client._misc_task is not None:
                await asyncio.wait([self._client._misc_task])

    def acknowledge(self, tag: int) -> None:
        self._paho.ack(tag, 1)

    async def _unless_lost(self, doing: Awaitable[T]) -> T:
        """Wait as long as the connection stands; `BusLost` when it does not any more."""
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.add(scope)
                try:
                    return await doing
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            raise self._loss() from _failure(self._client._disconnected)

    def _on_lost(self, _: asyncio.Future[None]) -> None:
        for scope in self._scopes:
            scope.reschedule(0)

    def _lost(self) -> bool:
        return self._closed or self._client._disconnected.done()

    def _loss(self) -> BusLost:
        cause = _failure(self._client._disconnected)
        lost = BusLost(f"{self._name}: the connection broke: {cause or 'closed'}; the bus connects again")
        lost.__cause__ = cause
        return lost

    def _on_message(self, _client: PahoClient, _userdata: object, message: MQTTMessage) -> None:
        self._inbox.receive(message.topic, bytes(message.payload), message.mid if message.qos else None)

    def _on_disconnect(self, *args: Any) -> None:
        # aiomqtt overlooks a break before CONNACK, and would wait for an answer for ever.
        if not self._client._connected.done():
            self._client._connected.set_exception(aiomqtt.MqttError("closed before the broker answered"))
        if self._end_connection is not None:
            self._end_connection(*args)

    def _on_socket_open(self, client: PahoClient, userdata: object, sock: Any) -> None:
        # Runs in the thread that connects, which a cancelled attempt leaves running.
        if self._closed or self._register_socket is None:
            raise ConnectionAbortedError("given up")
        self._register_socket(client, userdata, sock)


def _failure(future: asyncio.Future[None]) -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None


def _code(answer: object) -> int:
    if isinstance(answer, ReasonCode):
        return answer.value
    return answer if isinstance(answer, int) else 0
