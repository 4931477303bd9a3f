"""MQTT 3.1.1 over TCP or TLS as a bus: persistent session, QoS 1, acknowledged by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import aiomqtt
from paho.mqtt.enums import MQTTErrorCode

from broker.bus import Bus, BusError, BusLost, BusRefused, Credentials
from broker.lifeline import Lifeline
from broker.mqtt_client import MqttClient, code
from broker.ports import Clock, Entropy
from broker.reconnecting import RETRY_MAX_S, WINDOW_DELIVERIES, Inbox, ReconnectingBus
from broker.tls import explain, tls_context

HANDSHAKE_DEADLINE_S = 15.0
"""For TCP, TLS and the broker's answer to CONNECT together."""

# CONNACK 2, 4 and 5 as paho translates them.
_REFUSALS: Final = {
    133: "check the client id with the broker's operator",
    134: "check user name and password with the broker's operator",
    # RabbitMQ has no other word for a limit that is reached, and Mosquitto none for a wrong password.
    135: "check user name and password, what this user may do, and on RabbitMQ limits of connections, with "
    "the broker's operator",
}
_NOT_GRANTED = 0x80


def mqtt_bus(
    host: str,
    port: int,
    credentials: Credentials,
    subscriptions: Iterable[str],
    *,
    clock: Clock,
    entropy: Entropy,
    secure: bool = False,
    window_deliveries: int = WINDOW_DELIVERIES,
    retry_max_s: float = RETRY_MAX_S,
    return_max_s: float = 0.0,
) -> Bus:
    """A bus over MQTT 3.1.1: persistent session, QoS 1, manual acknowledgements; ``secure`` means TLS.

    A refused login or subscription is final for this object; a certificate that does not hold is not, because
    it may be renewed. What a reader may rely on beyond `broker.bus` stands in `broker.reconnecting`.
    Raises `BusError` for certificate files that cannot be used.
    """
    wanted = tuple(subscriptions)
    if secure:
        tls_context(credentials.tls)  # each connection reads the files again
    return ReconnectingBus(
        f"broker {host}:{port}",
        lambda inbox: _MqttLink(host, port, credentials, wanted, inbox, secure=secure),
        clock=clock,
        entropy=entropy,
        window_deliveries=window_deliveries,
        retry_max_s=retry_max_s,
        return_max_s=return_max_s,
    )


class _MqttLink:
    """One connection to a broker."""

    problem = ""

    def __init__(
        self,
        host: str,
        port: int,
        credentials: Credentials,
        subscriptions: Sequence[str],
        inbox: Inbox,
        *,
        secure: bool,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = credentials.tls
        self._secure = secure
        self._name = f"broker {host}:{port}"
        self._who = f"user {credentials.username!r} as client {credentials.client_id!r}"
        self._subscriptions = subscriptions
        self._line = Lifeline()
        self._unanswered: dict[object, str] = {}
        self._client = MqttClient(host, port, credentials, on_message=inbox.receive, on_lost=self._on_lost)

    async def open(self) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_DEADLINE_S):
                await self._client.connect(tls_context(self._tls) if self._secure else None)
        except TimeoutError as error:
            cause = f"no answer within {HANDSHAKE_DEADLINE_S:g} s"
            remedy = "is it an MQTT port, or has RabbitMQ a memory or disk alarm?"
            raise BusLost(f"{self._name}: {cause}; {remedy}") from error
        except BusError as error:
            raise BusLost(f"{self._name}: {error}") from error
        except aiomqtt.MqttError as error:
            raise await self._not_connected(error) from error

    async def _not_connected(self, error: aiomqtt.MqttError) -> BusError:
        if isinstance(error, aiomqtt.MqttCodeError) and (remedy := _REFUSALS.get(code(error.rc))):
            return BusRefused(f"{self._name}: {self._who} refused: {error}; {remedy}")
        if self._client.version_refused:
            return BusRefused(f"{self._name}: it does not speak MQTT 3.1.1; use a broker that does")
        cause = self._client.cause
        unanswered = "MQTT" if cause is not None and self._client.tls_unanswered else ""
        failure = cause or error
        if tls := await explain(failure, self._host, self._port, self._tls, unanswered=unanswered):
            return BusLost(f"{self._name}: {tls}")
        if cause is not None:
            speaks = "MQTT with TLS" if self._secure else "MQTT without TLS"
            return BusLost(f"{self._name}: {error} ({cause}); does it speak {speaks} on this port?")
        return BusLost(f"{self._name}: cannot connect: {error}; is it running and reachable?")

    async def subscribe(self) -> None:
        if not self._subscriptions:
            return
        try:
            with self._asking(", ".join(self._subscriptions)):
                granted = await self._line.unless_lost(self._client.subscribe(self._subscriptions))
        except aiomqtt.MqttError as error:
            raise BusLost(f"{self._name}: the connection broke: {error}") from error
        answers = zip(self._subscriptions, granted, strict=True)
        if denied := [topic for topic, answer in answers if answer >= _NOT_GRANTED]:
            raise BusRefused(
                f"{self._name}: {self._who} may not subscribe to {', '.join(denied)}; "
                "check the broker's access rules for this user"
            )

    async def publish(self, topic: str, payload: bytes) -> bool:
        if self._line.lost:
            return False
        try:
            with self._asking(topic):
                await self._line.unless_lost(self._client.publish(topic, payload))
        except aiomqtt.MqttCodeError as error:
            if error.rc == MQTTErrorCode.MQTT_ERR_NO_CONN:
                return False
            raise BusLost(f"{self._name}: the connection broke while sending: {error}") from error
        return True

    async def ended(self) -> BusLost:
        return await self._line.ended()

    async def close(self) -> None:
        politely = not self._line.lost
        self._line.cut(BusLost(f"{self._name}: the bus was closed"))
        await self._client.close(politely=politely)

    def acknowledge(self, tag: int) -> None:
        self._client.acknowledge(tag)

    @contextmanager
    def _asking(self, topic: str) -> Iterator[None]:
        question = object()
        self._unanswered[question] = topic
        try:
            yield
        finally:
            del self._unanswered[question]

    def _on_lost(self) -> None:
        cause = self._client.cause
        text = f"{self._name}: the connection broke: {cause or 'closed'}"
        oldest = next(iter(self._unanswered.values()), "")
        if oldest and isinstance(cause, ConnectionError):
            # RabbitMQ says in this way, and no other, that a topic is denied, or a queue for it full.
            text += (
                f" before it answered for {oldest}; if that goes on, check the access rules for {self._who}, "
                "and whether a queue for this topic is full"
            )
        loss = BusLost(f"{text}; the bus connects again")
        loss.__cause__ = cause
        self._line.cut(loss)
