"""RabbitMQ's management API: calls that block, and errors that a person can act upon."""

from __future__ import annotations

import http.client
import json
import ssl
from base64 import b64encode
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from coordinator.broker_admin.roster import AccessError
from coordinator.config import ConfigError

PORTS: Final = {"http": 15672, "https": 15671}
USER_DEFAULT: Final = "guest"
ANSWER_S: Final = 15.0
ANSWER_BYTES_MAX: Final = 64 << 20  # a list of all users or queues
REASON_CHARS_MAX: Final = 300


class ManagementError(AccessError):
    """RabbitMQ could not be told. ``status`` is that of its answer; 0 if there was none."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Management:
    """The API behind ``http(s)://[user@]host[:port]``.

    ``ca`` is the PEM text of the authority that signed the API's certificate; empty for the system's.
    Raises `coordinator.config.ConfigError` for another URL.
    """

    def __init__(self, url: str, password: str, ca: str = "") -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"management URL: {error}; write http(s)://user@host:port") from error
        if parts.scheme not in PORTS or not parts.hostname or parts.path not in ("", "/") or parts.password:
            raise ConfigError("management URL: not of the form http(s)://user@host:port")
        self.user = unquote(parts.username or USER_DEFAULT)
        self._host = parts.hostname
        self._port = port or PORTS[parts.scheme]
        self._context = ssl.create_default_context(cadata=ca or None) if parts.scheme == "https" else None
        self._login = "Basic " + b64encode(f"{self.user}:{password}".encode()).decode()
        self._name = f"RabbitMQ's management API on {self._host}:{self._port}"

    def get(self, *path: str) -> Any:
        """What is there. Raises `ManagementError`."""
        return self._call("GET", path)

    def put(self, *path: str, body: object) -> None:
        """Make or replace. Raises `ManagementError`."""
        self._call("PUT", path, body)

    def post(self, *path: str, body: object) -> None:
        """Add. Raises `ManagementError`."""
        self._call("POST", path, body)

    def delete(self, *path: str) -> None:
        """Remove; no error if it is not there. Raises `ManagementError`."""
        try:
            self._call("DELETE", path)
        except ManagementError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise

    def wall_s(self) -> float:
        """The time on its machine: seconds since 1970. Raises `ManagementError`."""
        connection = self._connection()
        try:
            connection.request("HEAD", "/")
            told = connection.getresponse().getheader("Date", "")
            return parsedate_to_datetime(told).timestamp()
        except (OSError, http.client.HTTPException, ValueError) as error:
            remedy = "see that RabbitMQ's own management plugin answers there, and no proxy"
            raise ManagementError(f"{self._name}: it does not tell its time: {error}; {remedy}") from error
        finally:
            connection.close()

    def _call(self, method: str, path: tuple[str, ...], body: object = None) -> Any:
        target = "/api/" + "/".join(quote(part, safe="@") for part in path)
        status, data = self._ask(method, target, body)
        if status == http.HTTPStatus.UNAUTHORIZED:
            raise ManagementError(
                f"{self._name}: user {self.user} refused; check its name and password, and that it is an "
                f"administrator: `rabbitmqctl set_user_tags {self.user} administrator`",
                status,
            )
        try:
            answer = json.loads(data or b"null")
        except ValueError as error:
            raise ManagementError(
                f"{self._name}: the answer ({status}) is not the API's; name the management plugin's port",
                status,
            ) from error
        if status >= http.HTTPStatus.BAD_REQUEST:
            reason = answer.get("reason") or answer.get("error") if isinstance(answer, dict) else answer
            what = f"{method} {target}: {str(reason)[:REASON_CHARS_MAX]}"
            raise ManagementError(f"{self._name}: {what} ({status}); {_remedy(status)}", status)
        return answer

    def _ask(self, method: str, target: str, body: object) -> tuple[int, bytes]:
        headers = {"Authorization": self._login, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        connection = self._connection()
        try:
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            return response.status, response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ManagementError(
                f"{self._name}: cannot be reached: {cause}; is RabbitMQ running there, with its plugin: "
                f"`rabbitmq-plugins enable rabbitmq_management`?"
            ) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_S)
        return http.client.HTTPSConnection(self._host, self._port, timeout=ANSWER_S, context=self._context)


def _remedy(status: int) -> str:
    if status == http.HTTPStatus.NOT_FOUND:
        return "compare `vhost` in coordinator.toml with `rabbitmqctl list_vhosts`"
    return "RabbitMQ's own log tells more"
