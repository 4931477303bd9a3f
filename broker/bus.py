"""The one seam between fedbus and a message broker, and its guarantee in words.

What every bus promises, and all that the code above may rely on:

- *At least once, while both ends live.* ``publish`` returns when the broker has taken the message.
  A message taken may still be lost (broker killed, queue limit, topic denied): what must not be lost
  rests on the receipts that the coordinator sends, never on a broker's acknowledgement.
- *Order per sender and topic*, while no connection breaks; after a break, messages may come again.
- *Flow control.* A delivery that was not acknowledged counts against the connection's window, so a
  reader that stops acknowledging stops the flow; nothing is dropped at this side. Acknowledgements
  reach the broker in the order of receipt, and only on the connection that delivered.
- *Reconnection* is the bus's own business: capped, jittered back-off. After each connection the
  reader sees `Connected`, so that it can ask for what it may have missed.
- Nothing depends on retained messages or on a last will.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self


class BusError(Exception):
    """A bus could not do what it was asked. The message names broker, cause and remedy."""


class BusUndelivered(BusError):
    """The broker did not take the message: nobody listens to its topic, a queue is full, or we may not
    publish there. Only some brokers say so, the others drop it without a word. Send it again later."""


class BusLost(BusUndelivered):
    """The connection broke before the broker answered: the message may or may not have arrived."""


class BusRefused(BusError):
    """The broker refused us (credentials, protocol): definitely nothing was sent. Retrying won't help."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom we trust and what we show, for ``mqtts:`` and ``amqps:``.

    ``ca`` is the text of PEM certificates; empty for the system's. ``certificate`` and ``key`` are PEM files
    of a client certificate, if the broker wants one.
    """

    ca: str = ""
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are to the broker. ``client_id`` is also the name of the session, and of its queue on AMQP: one
    per device and federation, no dots. A session that is not ``durable`` begins empty and is forgotten by the
    broker when its connection ends."""

    client_id: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls = Tls()
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection stands and its subscriptions are granted. ``count`` is 1 for the first."""

    count: int


class Delivery(Protocol):
    """One message as it arrived."""

    @property
    def topic(self) -> str: ...

    @property
    def payload(self) -> bytes: ...

    async def ack(self) -> None:
        """Let the broker forget the message. Idempotent; no effect once its connection is gone."""


class Bus(Protocol):
    """A reconnecting, durable session with a broker, with fixed subscriptions.

    Construction does nothing; entering the context starts connecting and returns at once; leaving it
    closes the connection (the session and its queue stay with the broker).
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    @property
    def problem(self) -> str:
        """Why nothing is sent now (no connection, or a broker that takes nothing), in one line with the
        remedy; empty while all is well."""

    def incoming(self) -> AsyncIterator[Delivery | Connected]:
        """All deliveries and connections, for one reader. Raises `BusRefused`; never ends otherwise."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Send with QoS 1 (at least once); waits for a connection, then for the broker's answer.

        Callers bound the wait with ``asyncio.timeout``. Raises `BusLost` when the connection broke
        in between (indefinite: it may have arrived), `BusUndelivered` when the broker says that it did not
        take it, `BusRefused` when the broker will not have us.
        """
