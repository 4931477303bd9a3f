"""What operators do to let users in: RabbitMQ's management plugin, Mosquitto's password file."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

GUEST = "Basic Z3Vlc3Q6Z3Vlc3Q="  # guest:guest


class Management:
    """The API on a port of 127.0.0.1, as user ``guest``. Raises urllib's HTTPError."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api"

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The answer; None if it is empty."""
        request = urllib.request.Request(  # noqa: S310 - our own URL
            f"{self._url}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": GUEST},
            method=method,
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")

    def admit(
        self, user: str, password: str, publish: Sequence[str] = ("#",), subscribe: Sequence[str] = ("#",)
    ) -> None:
        """Let a user in, who may do this much (topic filters)."""
        name = quote(user, safe="")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        topics = {"exchange": "amq.topic", "write": _pattern(publish), "read": _pattern(subscribe)}
        self.call("PUT", f"users/{name}", {"password": password, "tags": ""})
        self.call("PUT", f"permissions/%2F/{name}", everything)
        self.call("PUT", f"topic-permissions/%2F/{name}", topics)

    def declare(self, queue: str, arguments: Mapping[str, Any]) -> None:
        """A durable queue, as it is made at deployment."""
        path = f"queues/%2F/{quote(queue, safe='')}"
        self.call("PUT", path, {"durable": True, "arguments": dict(arguments)})


def _pattern(filters: Sequence[str]) -> str:
    """Topic filters as a regular expression over routing keys."""
    keys = [f.replace("/", "\\.").replace("+", "[^.]+").replace("#", ".*") for f in filters]
    return f"^({'|'.join(keys)})$"


def hashed(password: str) -> str:
    """As ``mosquitto_passwd`` writes it, but quick."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 1)
    return f"$7$1${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
