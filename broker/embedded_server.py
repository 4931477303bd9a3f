"""The daemon's half of the embedded broker: amqtt with our users and topic rules.

The only module that imports amqtt (0.12). Faults of it that no resending would make up for are mended here: a
refused login must not push out, empty or change the session that it names; a session taken over by a new
connection must not end as "disconnected" when the old connection is cleared away; what a sender had
acknowledged must be passed on although it left (hundreds of messages stayed behind); new messages must not
overtake those queued while the reader was away.

Last wills and retained messages, which fedbus does not use, are not there: amqtt sends a will to any topic,
and what is retained to everybody who connects, without asking for the right.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import resource
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext, BrokerConfig
from amqtt.errors import BrokerError, MQTTError
from amqtt.mqtt.connack import NOT_AUTHORIZED, ConnackPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broker.embedded import password_hash
from broker.filters import covers

SHUTDOWN_DEADLINE_S = 3.0
DENIALS_PERIOD_S = 60.0
DENIALS_LOGGED_MAX = 100  # in such a period
TOPIC_CHARS_MAX = 200
NAME_CHARS_MAX = 100

_log = logging.getLogger(__name__)


def serve(host: str, port: int, users: Path) -> int:
    """Run until SIGTERM or SIGINT; logs to standard error. Returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # A warning per acknowledgement later than 5 s, which costs nothing: see the module `embedded`.
    logging.getLogger("amqtt.mqtt.protocol.handler").setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    _raise_open_files()
    return asyncio.run(_serve(host, port, users))


async def _serve(host: str, port: int, users: Path) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
        "plugins": {f"{__name__}.{plugin.__name__}": {"users": str(users)} for plugin in (Login, Topics)},
    }
    broker = _Broker(BrokerConfig.from_dict(config))
    try:
        await broker.start()
    except BrokerError as error:
        _log.error("port %d: %s; stop the program that uses it, or choose another port", port, error)
        return 1
    await stop.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(SHUTDOWN_DEADLINE_S):
            await broker.shutdown()
    return 0


class Users:
    """The users file, read again when it changed. A damaged or missing file knows nobody."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, dict[str, Any]] = {}

    def admits(self, client_id: str | None, username: str | None, password: str | None) -> bool:
        """Whether this is a user's password, and a client id that belongs to the user."""
        user = self._current().get(username or "")
        if user is None or username is None or password is None or _owner(client_id) != username:
            return False
        given = password_hash(password, bytes.fromhex(user["salt"]))
        return hmac.compare_digest(given, bytes.fromhex(user["hash"]))

    def allows(self, client_id: str | None, topic: str, action: str) -> bool:
        """``action`` is "publish" or "subscribe"; ``topic`` is a filter when subscribing."""
        user = self._current().get(_owner(client_id))
        return user is not None and any(covers(allowed, topic) for allowed in user[action])

    def _current(self) -> dict[str, dict[str, Any]]:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._stamp:
                self._users = json.loads(self._path.read_bytes())
                self._stamp = stamp
        except (OSError, ValueError) as error:
            if self._stamp is not None or self._users:
                _log.warning("users file %s: %s; nobody can log in", self._path, error)
            self._users, self._stamp = {}, None
        return self._users


def _owner(client_id: str | None) -> str:
    """The user that a client id belongs to. Login checks it, so rules need not trust the session's user."""
    return (client_id or "").partition("/")[0]


class Login(BaseAuthPlugin):  # type: ignore[misc]  # amqtt has no types
    """amqtt's question who may log in."""

    @dataclass
    class Config:
        """What amqtt passes on from the configuration: the path of the users file."""

        users: str = ""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._users = Users(Path(self.config.users))

    async def authenticate(self, *, session: Session) -> bool | None:
        return self._users.admits(session.client_id, session.username, session.password)


class Topics(BaseTopicPlugin):  # type: ignore[misc]  # amqtt has no types
    """amqtt's question who may publish, subscribe and receive where."""

    @dataclass
    class Config:
        """What amqtt passes on from the configuration: the path of the users file."""

        users: str = ""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._users = Users(Path(self.config.users))
        self._began_s = -math.inf
        self._told = 0

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Receiving follows the rules for subscribing, so a removed user receives nothing more."""
        if session is None or topic is None:
            return False
        verb = "publish" if action == Action.PUBLISH else "subscribe"
        allowed = self._users.allows(session.client_id, topic, verb)
        if not allowed and action != Action.RECEIVE:
            self._tell(f"user {session.username} was denied to {verb}: {topic[:TOPIC_CHARS_MAX]!r}")
        return allowed

    def _tell(self, text: str) -> None:
        """Log it, unless there were too many in this minute."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._began_s > DENIALS_PERIOD_S:
            self._began_s, self._told = now_s, 0
        self._told += 1
        if self._told <= DENIALS_LOGGED_MAX:
            _log.warning("%s", text)
        elif self._told == DENIALS_LOGGED_MAX + 1:
            _log.warning("more denials are not logged for up to %g s", DENIALS_PERIOD_S)


class _Broker(Broker):  # type: ignore[misc]  # amqtt has no types
    def __init__(self, config: BrokerConfig) -> None:
        super().__init__(config)
        self._joined: set[Any] = set()
        """Handlers of the connections whose session queue was sent."""

    async def _initialize_client_session(
        self, reader: Any, writer: Any, remote_address: str, remote_port: int
    ) -> tuple[Any, Session]:
        """As amqtt does it, but the login comes before anything happens to the session that it names."""
        del remote_address, remote_port
        try:
            handler, asking = await BrokerProtocolHandler.init_from_connect(
                reader, writer, self.plugins_manager
            )
        except MQTTError:
            await writer.close()
            raise
        if not await self._authenticate(asking, None):
            await ConnackPacket.build(0, NOT_AUTHORIZED).to_stream(writer)
            await writer.close()
            user, client = (str(name)[:NAME_CHARS_MAX] for name in (asking.username, asking.client_id))
            raise MQTTError(f"user {user!r} was refused as client {client!r}")
        if asking.will_flag:
            # The rules are asked so that a denial is told.
            await self._topic_filtering(asking, topic=asking.will_topic, action=Action.PUBLISH)
            asking.will_flag = False
        session: Session | None = self._sessions.get(asking.client_id, (None, None))[0]
        if asking.clean_session or session is None or session.clean_session:
            await self._delete_session(asking.client_id)
            asking.parent = 0
            return handler, asking
        session.keep_alive = asking.keep_alive
        session.username, session.password = asking.username, asking.password
        session.parent = 1
        return handler, session

    async def retain_message(self, *_: object, **__: object) -> None:
        """Keep nothing."""

    async def _handle_client_session(
        self, reader: Any, writer: Any, client_session: Session, handler: Any, server: Any, listener_name: str
    ) -> None:
        greet = handler.mqtt_connack_authorize

        async def greet_unseen(authorized: bool) -> None:
            # Until its queue was sent the session counts as offline: what comes now goes behind that.
            client_session.transitions.disconnect()
            await greet(authorized)

        handler.mqtt_connack_authorize = greet_unseen
        try:
            await super()._handle_client_session(
                reader, writer, client_session, handler, server, listener_name
            )
        finally:
            self._joined.discard(handler)

    async def _publish_session_retained_messages(self, session: Session) -> None:
        self._joined.add(self._get_handler(session))
        if not session.transitions.is_connected():
            session.transitions.connect()
        await super()._publish_session_retained_messages(session)

    async def _client_message_loop(self, client_session: Session, handler: Any) -> None:
        await super()._client_message_loop(client_session, handler)
        # Acknowledged, but not passed on yet when the sender left.
        rest = client_session.delivered_message_queue
        while not rest.empty():
            message = asyncio.get_running_loop().create_future()
            message.set_result(rest.get_nowait())
            if not await self._handle_message_delivery(client_session, handler, message):
                break

    async def _handle_disconnect(self, client_session: Session, handler: Any, disconnect_waiter: Any) -> None:
        if self._get_handler(client_session) is handler:
            # At once: what is sent while the old connection is cleared away would be lost.
            client_session.transitions.disconnect()
        await super()._handle_disconnect(client_session, handler, disconnect_waiter)
        if (successor := self._get_handler(client_session)) is not handler and successor in self._joined:
            await self._publish_session_retained_messages(client_session)


def _is_news(record: logging.LogRecord) -> bool:
    """Not for late acknowledgements: amqtt reports each with a traceback."""
    return record.exc_info is None or not isinstance(record.exc_info[1], TimeoutError)


def _raise_open_files() -> None:
    """One connection is one open file, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
