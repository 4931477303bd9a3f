"""A plain MQTT client that does as it is told, for parties that don't keep to fedbus's rules."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.brokers import until

PATIENCE_S = 20.0


class Client:
    """One connection, no reconnecting. ``refused`` is why there is none; ``lost`` is set when it ended."""

    def __init__(
        self,
        port: int,
        user: str,
        password: str,
        *,
        client_id: str = "",
        clean: bool = True,
        ca: Path | None = None,
        certificate: Path | None = None,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.user = user
        self.received: list[tuple[str, bytes]] = []
        self.lost = Event()
        self.refused = ""
        self._answered: set[int] = set()
        self._connected = Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or user, clean_session=clean
        )
        self._client.username_pw_set(user, password)
        if will is not None:
            self._client.will_set(*will, qos=1)
        if ca is not None:
            own = (str(certificate), str(certificate.with_suffix(".key"))) if certificate else (None, None)
            self._client.tls_set(str(ca), own[0], own[1], tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self._client.reconnect_delay_set(3600, 3600)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self.lost.set()
        self._client.on_message = lambda _c, _u, m: self.received.append((m.topic, bytes(m.payload)))
        self._client.on_publish = lambda _c, _u, number, *_: self._answered.add(number)
        self._client.on_subscribe = lambda _c, _u, number, *_: self._answered.add(number)
        self._port = port

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.refused = str(reason) if reason.is_failure else ""
        self._connected.set()

    def __enter__(self) -> Self:
        try:
            self._client.connect("127.0.0.1", self._port)
        except (OSError, ssl.SSLError) as error:
            self.refused = str(error)
            self.lost.set()
            return self
        self._client.loop_start()
        until(lambda: self._connected.is_set() or self.lost.is_set(), "an answer to CONNECT", PATIENCE_S)
        if not self._connected.is_set():
            self.refused = "closed"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, *payloads: bytes, qos: int = 1, retain: bool = False) -> None:
        """Returns once the last was acknowledged (or sent, with QoS 0), or the connection has ended."""
        for payload in payloads:
            number = self._client.publish(topic, payload, qos=qos, retain=retain).mid
        self._wait(number)

    def send(self, topic: str, payload: bytes) -> None:
        """Does not wait for an answer."""
        self._client.publish(topic, payload, qos=1)

    def subscribe(self, topic_filter: str) -> None:
        """Returns once it was answered, or the connection has ended."""
        number = self._client.subscribe(topic_filter, 1)[1]
        assert number is not None
        self._wait(number)

    def _wait(self, number: int) -> None:
        until(lambda: number in self._answered or self.lost.is_set(), "an answer", PATIENCE_S)

    def break_off(self) -> None:
        """End the connection without a word, as a device does that loses its power."""
        sock = self._client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        until(self.lost.is_set, "the end of the connection", PATIENCE_S)

    def wait_for(self, payload: bytes, *, or_lost: bool = False) -> None:
        """Until this was received, or the connection has ended."""

        def done() -> bool:
            received = any(data == payload for _, data in self.received)
            return received or (or_lost and self.lost.is_set())

        until(done, f"{payload!r} at {self.user}", PATIENCE_S)
