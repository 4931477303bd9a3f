"""RabbitMQ's management API, as far as a real one would be too much: an HTTP server that answers as told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from broker.checkup import told
from coordinator.broker_admin.management import Management, ManagementError
from coordinator.broker_admin.rabbitmq import RabbitUsers
from coordinator.config import Config, ConfigError
from schemas.ids import FederationId

Answer = Callable[[str, str], tuple[int, str]]


@contextmanager
def api(answer: Answer) -> Iterator[str]:
    """Serves; the URL of it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.command, self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_DELETE = do_PUT = do_GET  # noqa: N815 - the names that the library asks for

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://admin@127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_plugin_that_devices_need_and_is_not_enabled_is_named() -> None:
    nodes = json.dumps([{"name": "rabbit@b", "enabled_plugins": ["rabbitmq_management"]}])
    answers = {"/api/nodes": nodes, "/api/overview": "{}"}
    with api(lambda _, path: (200, answers.get(path, "[]"))) as url:
        federation, management = FederationId(bytes(16)), Management(url, "right")
        users = RabbitUsers(management, Config(broker="amqp://b", device_urls=["mqtt://b"]), federation)
        with pytest.raises(ManagementError, match=r"node rabbit@b.*`rabbitmq-plugins enable rabbitmq_mqtt`"):
            users.set_up({})
        assert RabbitUsers(management, Config(broker="amqp://b"), federation).set_up({})["users"] == []


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, "<html>", "the answer (200) is not the API's"),
        (401, "<html>", "user admin refused"),
        (401, '{"error":"not_authorised"}', "user admin refused"),
        (500, '{"error":"x","reason":"the disk is full"}', "GET /api/users: the disk is full (500)"),
        (400, '"odd"', "GET /api/users: odd (400)"),
        (503, "", "GET /api/users: None (503)"),
    ],
)
def test_an_answer_that_is_no_help_is_told_in_one_line(status: int, body: str, words: str) -> None:
    with api(lambda *_: (status, body)) as url, pytest.raises(ManagementError) as refused:
        Management(url, "right").get("users")
    assert words in str(refused.value)
    assert told("management", refused.value).remedy
    assert "\n" not in str(refused.value)
    assert "right" not in str(refused.value)


def test_a_virtual_host_that_is_not_there_is_told_with_the_setting() -> None:
    with api(lambda *_: (404, '{"reason":"Not Found"}')) as url, pytest.raises(ManagementError) as refused:
        Management(url, "right").get("policies", "plant")
    found = told("management", refused.value)
    assert "GET /api/policies/plant: Not Found (404)" in found.measured
    assert "`vhost` in coordinator.toml" in found.remedy


def test_what_is_gone_already_is_no_error_to_remove() -> None:
    with api(lambda *_: (404, '{"reason":"Not Found"}')) as url:
        Management(url, "right").delete("users", "press-07")
        with pytest.raises(ManagementError):
            Management(url, "right").get("users", "press-07")


def test_names_are_escaped() -> None:
    asked: list[str] = []

    def answer(_: str, path: str) -> tuple[int, str]:
        asked.append(path)
        return 200, "[]"

    with api(answer) as url:
        Management(url, "right").get("queues", "/", "a/b c@d?")
    assert asked == ["/api/queues/%2F/a%2Fb%20c@d%3F"]


@pytest.mark.parametrize(
    "url", ["", "b:15672", "ftp://b", "http://", "http://b:x", "http://u:p@b", "http://b/x"]
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"http\(s\)://user@host:port"):
        Management(url, "right")
