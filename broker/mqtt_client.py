"""One MQTT 3.1.1 connection: aiomqtt with manual acknowledgements, causes, and an end that is clean.

The only module that reaches through aiomqtt to paho (``_client``). aiomqtt 2.5 has no manual acknowledgements
and no way to abandon an attempt to connect; it overlooks breaks around CONNACK, and watches sockets that were
closed meanwhile. paho 2.2 keeps to itself why a connection broke, and takes one for dead that is slow.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from fcntl import ioctl
from functools import partial
from struct import Struct
from termios import TIOCOUTQ
from typing import Any, Final, cast

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from broker.bus import Credentials
from broker.tls import shake_hands

KEEPALIVE_S = 30
CONNECT_DEADLINE_S = 5.0
"""For the TCP connection alone, and for each answer while TLS is set up."""
CLOSE_DEADLINE_S = 2.0
OUTQ: Final = Struct("i")
"""What the kernel answers: bytes that the far end has not acknowledged (tcp(7), SIOCOUTQ)."""

# All that it reports reaches our callers as errors.
_library_log = logging.getLogger("broker.mqtt.paho")
_library_log.setLevel(logging.CRITICAL)


class MqttClient:
    """A client for one connection only: a reused one would send what was given up on.

    ``on_message`` gets topic, payload and the tag for `acknowledge`; ``on_lost`` is called once, when a
    connection that stood has ended. All errors are aiomqtt's. A break does not end every wait: callers see to
    that in ``on_lost``.
    """

    def __init__(
        self,
        host: str,
        port: int,
        credentials: Credentials,
        *,
        on_message: Callable[[str, bytes, int | None], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.cause: Exception | None = None
        """Why the connection broke, once it did."""
        self.version_refused = False
        """The broker said that it does not speak MQTT 3.1.1."""
        self.tls_unanswered = False
        """TLS stands, and the broker has not answered yet."""
        self._host = host
        self._receive = on_message
        self._on_lost = on_lost
        self._given_up = False
        self._sent_bytes = self._taken_bytes = 0
        """Given to the system; acknowledged by the far end's."""
        self._client = aiomqtt.Client(
            host,
            port,
            username=credentials.username,
            password=credentials.password,
            identifier=credentials.client_id,
            clean_session=not credentials.durable,
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
        self._hook_in()

    def _hook_in(self) -> None:
        paho, methods = self._paho, cast("Any", self._paho)
        paho.on_message = self._on_message
        self._register_socket = paho.on_socket_open
        paho.on_socket_open = self._on_socket_open
        paho.on_socket_register_write = self._on_socket_register_write
        self._end_connection = paho.on_disconnect
        paho.on_disconnect = self._on_disconnect
        self._read, self._write = paho._sock_recv, paho._sock_send
        methods._sock_recv, methods._sock_send = self._sock_recv, self._sock_send
        self._look_after = paho.loop_misc
        methods.loop_misc = self._loop_misc
        self._take_connack = paho._handle_connack
        methods._handle_connack = self._handle_connack

    async def connect(self, context: ssl.SSLContext | None) -> None:
        """Returns when the broker has taken us. With a ``context`` it is TLS. Raises `aiomqtt.MqttError`."""
        if context is not None:
            self._paho.tls_set_context(context)
            cast("Any", self._paho)._ssl_wrap_socket = partial(self._shake_hands, context=context)
        # aiomqtt forgets a break that comes right behind CONNACK by replacing this future.
        early = self._client._disconnected
        await self._client.__aenter__()
        if early.done() or self._paho.socket() is None:
            raise aiomqtt.MqttError("closed right behind its greeting") from _failure(early)
        self._client._disconnected.add_done_callback(self._on_end)

    async def subscribe(self, topics: Sequence[str]) -> list[int]:
        """The broker's answers, as codes."""
        wanted = [(topic, 1) for topic in topics]
        return [code(answer) for answer in await self._client.subscribe(wanted, timeout=math.inf)]

    async def publish(self, topic: str, payload: bytes) -> None:
        """With QoS 1; returns with the broker's acknowledgement."""
        await self._client.publish(topic, payload, qos=1, timeout=math.inf)

    def acknowledge(self, tag: int) -> None:
        self._paho.ack(tag, 1)

    async def close(self, *, politely: bool) -> None:
        """Free everything, whatever state it is in; with a goodbye, if the connection still stands."""
        politely = politely and self._paho.is_connected()
        self._given_up = True
        try:
            if politely:
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

    def _shake_hands(self, plain: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        # Runs in the thread that connects. paho's own leaves the socket open when it fails.
        secured = shake_hands(plain, context, self._host, CONNECT_DEADLINE_S)
        self.tls_unanswered = True
        return secured

    def _on_end(self, disconnected: asyncio.Future[None]) -> None:
        self.cause = self.cause or _failure(disconnected)
        self._on_lost()

    def _sock_recv(self, size: int) -> bytes:
        try:
            data = self._read(size)
        except BlockingIOError:
            raise
        except OSError as error:
            self.cause = error
            raise
        if data:
            self._hear()
        elif size:
            self.cause = ConnectionAbortedError("the broker closed it")
        return data

    def _sock_send(self, data: bytes) -> int:
        try:
            sent = self._write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self.cause = self.cause or error
            raise
        self._sent_bytes += sent
        return sent

    def _loop_misc(self) -> MQTTErrorCode:
        sock: Any = self._paho.socket()
        if sock is not None:
            (waiting_bytes,) = OUTQ.unpack(ioctl(sock, TIOCOUTQ, bytes(OUTQ.size)))
            taken_bytes = self._sent_bytes - waiting_bytes
            # With nothing left to take, it is the broker's turn: its system alone proves nothing.
            if waiting_bytes and taken_bytes > self._taken_bytes:
                self._hear()
            self._taken_bytes = taken_bytes
        return self._look_after()

    def _hear(self) -> None:
        # A sign of life: the answer to a ping waits behind a message that takes longer than `KEEPALIVE_S`.
        self._paho._ping_t = 0.0

    def _handle_connack(self) -> MQTTErrorCode:
        self.tls_unanswered = False
        self.version_refused = self._paho._in_packet["packet"][1:2] == b"\x01"
        return self._take_connack()

    def _on_message(self, _client: PahoClient, _userdata: object, message: MQTTMessage) -> None:
        # Not `message.topic`, which raises when a sender did not keep to UTF-8; paho would never recover.
        topic = message._topic.decode("utf-8", "replace")
        self._receive(topic, bytes(message.payload), message.mid if message.qos else None)

    def _on_disconnect(self, *args: Any) -> None:
        # aiomqtt overlooks a break before CONNACK, and would wait for an answer for ever.
        if not self._client._connected.done():
            self._client._connected.set_exception(aiomqtt.MqttError("closed before the broker answered"))
        if self._end_connection is not None:
            self._end_connection(*args)

    def _on_socket_register_write(self, client: PahoClient, _userdata: object, sock: Any) -> None:
        # aiomqtt's own watches a number, which is nobody's or another's if the socket was closed meanwhile.
        def watch() -> None:
            still = client.socket()
            if still is not None and still is sock:
                self._client._loop.add_writer(still, write)

        def write() -> None:
            try:
                client.loop_write()
            except OSError as error:
                if not self._client._disconnected.done():
                    self._client._disconnected.set_exception(error)

        self._client._loop.call_soon_threadsafe(watch)  # we may be in the thread that connects

    def _on_socket_open(self, client: PahoClient, userdata: object, sock: Any) -> None:
        # Runs in the thread that connects, which a cancelled attempt leaves running.
        if self._given_up or self._register_socket is None:
            sock.close()
            raise ConnectionAbortedError("given up")
        self._register_socket(client, userdata, sock)


def code(answer: object) -> int:
    """A reason code as a number."""
    if isinstance(answer, ReasonCode):
        return answer.value
    return answer if isinstance(answer, int) else 0


def _failure(future: asyncio.Future[None]) -> Exception | None:
    error = future.exception() if future.done() and not future.cancelled() else None
    return error if isinstance(error, Exception) else None
