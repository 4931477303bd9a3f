"""URLs: what they mean, and that a wrong one says so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus import BusError, BusUndelivered, Connected, Credentials
from broker.connect import check_device_url, connect
from broker.filters import covers
from broker.memory import MemoryBroker
from broker.system import system_ports
from tests.brokers import RabbitMQ
from tests.contract.transports import PATIENCE_S, EmbeddedTransport
from tests.contract.wire import CONNECT, ScriptedBroker

ANN = Credentials("ann", "ann", "right")
RIGHTS = ("configure", "write", "read")


async def test_memory_finds_its_broker_by_name() -> None:
    bus = connect("memory:x", ANN, ["t"], ports=system_ports(), memory={"x": MemoryBroker()})
    async with bus:
        assert await anext(bus.incoming()) == Connected(1)


async def test_embedded_means_this_machine_and_the_given_user(embedded: EmbeddedTransport) -> None:
    embedded.invite("ann")
    user = embedded.user("ann")
    credentials = Credentials(user, user, "right")
    bus = connect(f"embedded:{embedded.daemon.port}", credentials, ["t"], ports=embedded.ports)
    async with asyncio.timeout(PATIENCE_S), bus:
        assert await anext(bus.incoming()) == Connected(1)


async def test_user_and_password_in_the_url_replace_the_given_ones() -> None:
    async with asyncio.timeout(PATIENCE_S), ScriptedBroker() as broker:
        url = f"mqtt://bob:p%40ss@127.0.0.1:{broker.port}"
        async with connect(url, ANN, [], ports=system_ports()):
            wire = await broker.accept()
            said = await wire.read(CONNECT)
    assert said.body[10:] == b"\x00\x03ann\x00\x03bob\x00\x04p@ss"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://h", "'http' is not supported"),
        ("h:1883", "'h' is not supported"),
        ("", "'' is not supported"),
        ("mqtt://", "mqtt: names no host"),
        ("amqps://", "amqps: names no host"),
        ("mqtt://h:99999", "out of range"),
        ("amqp://h..example", "no host name"),
        ("embedded:", "not a port"),
        ("embedded:0", "not a port"),
        ("embedded:x", "not a port"),
        ("memory:y", "no such broker"),
    ],
)
def test_a_url_that_nobody_understands_is_an_error_that_says_what_would_do(url: str, complaint: str) -> None:
    with pytest.raises(BusError, match=complaint) as caught:
        connect(url, ANN, [], ports=system_ports(), memory={"x": MemoryBroker()})
    assert "embedded:PORT" in str(caught.value) or "://host:port" in str(caught.value)


@pytest.mark.parametrize("url", ["amqp://hub", "amqps://ann:geheim@10.0.0.7:5700/v", "amqp://"])
def test_a_device_speaks_no_amqp_with_another_machine(url: str) -> None:
    with pytest.raises(BusError, match=r"not for a device.*name its MQTT plugin: mqtt\(s\)://") as caught:
        check_device_url(url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["mqtts://hub", "embedded:1", "amqp://localhost", "amqps://127.0.0.1:5700", "amqp://[", ""]
)
def test_all_else_is_open_to_devices(url: str) -> None:
    check_device_url(url)


@pytest.mark.parametrize("url", ["http://ann:geheim@h", "amqp://ann:geheim@h..x", "mqtt://ann:geheim@:x"])
def test_an_error_never_shows_the_password(url: str) -> None:
    with pytest.raises(BusError) as caught:
        connect(url, ANN, [], ports=system_ports())
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_missing_library_is_an_error_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setitem(sys.modules, "broker.amqp", None)
    with pytest.raises(BusError, match=r"aiormq is not installed; `pip install 'fedbus\[coordinator\]'`"):
        connect(f"{scheme}://h", ANN, [], ports=system_ports())


def test_a_topic_that_amqp_cannot_carry_is_an_error_at_once() -> None:
    with pytest.raises(BusError, match=r"topic a\.b/c: on AMQP a dot"):
        connect("amqp://h", ANN, ["a.b/c"], ports=system_ports())


@pytest.mark.parametrize(
    ("scheme", "port"), [("mqtt", 1883), ("mqtts", 8883), ("amqp", 5672), ("amqps", 5671)]
)
async def test_a_url_without_port_means_the_usual_one(scheme: str, port: int) -> None:
    async with connect(f"{scheme}://127.0.0.1", ANN, [], ports=system_ports()) as bus:
        assert bus.problem == f"broker 127.0.0.1:{port}: not connected yet"


@pytest.mark.live
async def test_an_amqp_url_may_name_a_virtual_host(rabbitmq: RabbitMQ) -> None:
    rabbitmq.operator.call("PUT", "vhosts/press%2Fhall", {})
    rabbitmq.operator.call("PUT", "permissions/press%2Fhall/guest", dict.fromkeys(RIGHTS, ".*"))
    credentials = Credentials("ann", durable=False)
    url = f"amqp://guest:guest@127.0.0.1:{rabbitmq.amqp}"
    async with (
        asyncio.timeout(PATIENCE_S),
        connect(f"{url}/press%2Fhall", credentials, ["t"], ports=system_ports()) as there,
        connect(url, credentials, [], ports=system_ports()) as here,
    ):
        assert await anext(there.incoming()) == Connected(1)
        with pytest.raises(BusUndelivered, match="nobody listens"):
            await here.publish("t", b"x")
        await there.publish("t", b"x")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("broker.connect", "aiomqtt"),
        ("broker.connect", "aiormq"),
        ("broker.connect", "ssl"),
        ("broker.embedded", "amqtt"),
        ("broker.mqtt", "amqtt"),
        ("broker.mqtt", "aiormq"),
    ],
)
def test_a_module_loads_no_library_before_it_is_needed(module: str, unwanted: str) -> None:
    script = f"import {module}, sys; print({unwanted!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True, capture_output=True
    )
    assert done.stdout == b"False\n"


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a/+", "a/+", True),
        ("a/+", "a/#", False),
        ("a/#", "a/+", True),
        ("a/b", "a/+", False),
        ("#", "#", True),
        ("+", "#", False),
        ("a/b", "a/b/#", False),
    ],
)
def test_a_filter_covers_what_mqtt_says(outer: str, inner: str, expected: bool) -> None:
    assert covers(outer, inner) is expected


levels = st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4)
filters = st.lists(st.sampled_from(["a", "b", "", "+"]), min_size=1, max_size=4).flatmap(
    lambda head: st.sampled_from([head, [*head, "#"]])
)


@given(filters, filters, levels)
def test_what_a_permission_covers_reaches_no_topic_outside_it(
    outer: list[str], inner: list[str], topic: list[str]
) -> None:
    outer_text, inner_text, topic_text = "/".join(outer), "/".join(inner), "/".join(topic)
    if covers(outer_text, inner_text) and covers(inner_text, topic_text):
        assert covers(outer_text, topic_text)
