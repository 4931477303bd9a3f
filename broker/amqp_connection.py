"""One AMQP connection: from the socket to a virtual host that admits us, with errors that say what to do.

The modules ``broker.amqp_*`` alone know aiormq, and only this one and `broker.amqp_frames` reach behind its
public names. aiormq 7.2 keeps to itself that the broker blocks a connection, starts a task that nobody waits
for when one breaks, and hides why a virtual host refused us.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import aiormq
from aiormq.connection import FrameReceiver
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ConnectionClosed,
    ProbableAuthenticationError,
)
from pamqp import frame as frames
from pamqp.base import Frame
from pamqp.commands import Connection
from pamqp.frame import FrameTypes
from yarl import URL

from broker.amqp_frames import Incoming, Outgoing
from broker.bus import BusError, BusLost, BusRefused, Credentials
from broker.tls import explain, hung_up, tls_context

HEARTBEAT_S: Final = 30
"""A connection that is silent for three of these is given up."""
CONNECT_DEADLINE_S: Final = 5.0
"""For TCP and TLS."""
HANDSHAKE_DEADLINE_S: Final = 15.0
"""For the broker's answers up to the open virtual host."""
CLOSE_DEADLINE_S: Final = 2.0
READ_BUFFER_BYTES: Final = 1 << 20

_ACCESS_REFUSED: Final = 403

# All that it reports reaches our callers as errors, or the log of `broker.amqp`.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker is; ``vhost`` is the virtual host, ``secure`` means TLS."""

    host: str
    port: int
    vhost: str = "/"
    secure: bool = False

    @property
    def name(self) -> str:
        """The broker as error messages call it."""
        return f"broker {self.host}:{self.port}"


class AmqpConnection(aiormq.Connection):
    """A connection that says once that it broke, and each time that the broker blocks or frees it."""

    def __init__(
        self,
        url: URL,
        wire: _Wire,
        *,
        broken: Callable[[BaseException | None], None],
        blocked: Callable[[str], None],
    ) -> None:
        super().__init__(url, transport_factory=wire)
        self.write_queue = Outgoing(self.FRAME_BUFFER_SIZE)
        self._wire = wire
        self._broken = broken
        self._blocked = blocked

    async def hang_up(self, *, politely: bool) -> None:
        """Close it, whatever state it is in, within `CLOSE_DEADLINE_S`: with a goodbye, or at once."""
        goodbye = ConnectionClosed(0, "closed by us")
        transport = self._wire.writer.transport
        # aiormq's goodbye waits for a broker that reads, and cancelling it does not help.
        doom = self.loop.call_later(CLOSE_DEADLINE_S, _abort, transport)
        try:
            if politely:
                await self.close(goodbye)
        finally:
            doom.cancel()
            _abort(transport)
            await self.close(goodbye)

    def _on_reader_done(self, task: asyncio.Task[Any]) -> None:
        # aiormq would close itself now, in a task of its own. Ours is closed by its link.
        self._broken(None if task.cancelled() else task.exception())

    async def _Connection__reader(self, frame_receiver: FrameReceiver) -> None:  # noqa: N802
        await cast("Any", super())._Connection__reader(Incoming(frame_receiver.reader))

    async def _Connection__handle_connection_blocked(self, frame: Connection.Blocked) -> None:  # noqa: N802
        self._blocked(frame.reason or "no reason given")

    async def _Connection__handle_connection_unblocked(self, _: Connection.Unblocked) -> None:  # noqa: N802
        self._blocked("")

    @staticmethod
    async def _rpc(
        request: Frame,
        writer: asyncio.StreamWriter,
        frame_receiver: FrameReceiver,
        wait_response: bool = True,
    ) -> FrameTypes | None:
        # aiormq's own says "expected OpenOk, got Close" when the broker says why.
        writer.write(frames.marshal(request, 0))
        await writer.drain()
        if not wait_response:
            return None
        _, _, answer = await frame_receiver.get_frame()
        if isinstance(answer, Connection.Close):
            if answer.reply_code == _ACCESS_REFUSED:
                raise ProbableAuthenticationError(answer.reply_text)
            raise ConnectionClosed(answer.reply_code, answer.reply_text)
        return answer


class _Wire(aiormq.TransportFactory):
    """A socket that is open already: its errors are ours to translate, and it can be cut off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return self._reader, self.writer


async def dial(
    address: Address,
    credentials: Credentials,
    role: str,
    *,
    broken: Callable[[BaseException | None], None],
    blocked: Callable[[str], None],
) -> AmqpConnection:
    """An open connection, which the broker's operator sees as client id and ``role``.

    ``broken`` is called when it ends, ``blocked`` with the reason when the broker stops reading from it and
    with an empty text when it goes on. Raises `BusLost`, `BusRefused`.
    """
    wire = await _open_socket(address, credentials)
    connection = AmqpConnection(_url(address, credentials, role), wire, broken=broken, blocked=blocked)
    connection.vhost = address.vhost
    try:
        async with asyncio.timeout(HANDSHAKE_DEADLINE_S):
            await connection.connect()
    except BaseException as error:
        await connection.hang_up(politely=False)
        if isinstance(error, TimeoutError | AMQPError | OSError):
            raise await _not_admitted(address, credentials, error) from error
        raise
    return connection


def user_of(credentials: Credentials) -> str:
    """The user that the broker sees; RabbitMQ's own, if none is named."""
    return credentials.username or "guest"


def _url(address: Address, credentials: Credentials, role: str) -> URL:
    return URL.build(
        scheme="amqps" if address.secure else "amqp",
        host=address.host,
        port=address.port,
        user=user_of(credentials),
        password=credentials.password,
        query={"heartbeat": str(HEARTBEAT_S), "name": f"{credentials.client_id} {role}"},
    )


async def _open_socket(address: Address, credentials: Credentials) -> _Wire:
    context: ssl.SSLContext | None = None
    try:
        if address.secure:
            context = tls_context(credentials.tls)
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            reader, writer = await asyncio.open_connection(
                address.host,
                address.port,
                limit=READ_BUFFER_BYTES,
                ssl=context,
                ssl_shutdown_timeout=CLOSE_DEADLINE_S if context else None,
            )
    except TimeoutError as error:
        cause = f"no connection within {CONNECT_DEADLINE_S:g} s; is it running and reachable?"
        raise BusLost(f"{address.name}: {cause}") from error
    except BusError as error:
        raise BusLost(f"{address.name}: cannot connect: {error}") from error
    except OSError as error:
        failure = hung_up() if context and isinstance(error, ConnectionResetError) else error
        cause = await explain(failure, address.host, address.port, credentials.tls)
        cause = cause or f"cannot connect: {error}; is it running and reachable?"
        raise BusLost(f"{address.name}: {cause}") from error
    return _Wire(reader, writer)


def _abort(transport: asyncio.WriteTransport) -> None:
    # Python before 3.11.4, as Debian 12 has it, cannot abort a transport with TLS that was closed twice.
    with suppress(AttributeError):
        transport.abort()


async def _not_admitted(address: Address, credentials: Credentials, error: BaseException) -> BusError:
    name, user = address.name, user_of(credentials)
    match error:
        case TimeoutError():
            return BusLost(f"{name}: no answer within {HANDSHAKE_DEADLINE_S:g} s; is it an AMQP port?")
        case ProbableAuthenticationError() | AuthenticationError():
            return BusRefused(
                f"{name}: user {user!r} refused: {error}; "
                "check user name and password with the broker's operator"
            )
        case ConnectionClosed(args=(_, text)) if _is_final(str(text)):
            return BusRefused(
                f"{name}: user {user!r} may not use the virtual host {address.vhost!r}: {text}; "
                "`fedbus-coordinator broker rabbitmq` makes it and grants access"
            )
        case ConnectionClosed(args=(_, text)):
            return BusLost(f"{name}: the broker hung up: {text}; ask its operator")
    unanswered = "AMQP" if address.secure else ""
    if cause := await explain(error, address.host, address.port, credentials.tls, unanswered=unanswered):
        return BusLost(f"{name}: {cause}")
    return BusLost(f"{name}: closed before it answered; does it speak AMQP without TLS on this port?")


def _is_final(text: str) -> bool:
    """Whether an operator must act: a limit that is reached, or a virtual host that is down, may pass."""
    return "not found" in text or ("refused" in text and "limit" not in text)
