"""URLs: what they mean, and that a wrong one says so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus import BusError, Connected, Credentials
from broker.connect import connect
from broker.filters import covers
from broker.memory import MemoryBroker
from broker.system import system_ports
from tests.contract.transports import PATIENCE_S, EmbeddedTransport
from tests.contract.wire import CONNECT, ScriptedBroker

ANN = Credentials("ann", "ann", "right")


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
        ("amqp://h", "'amqp' is not supported"),
        ("mqtts://h", "'mqtts' is not supported"),
        ("h:1883", "'h' is not supported"),
        ("", "'' is not supported"),
        ("mqtt://", "names no host"),
        ("mqtt://h:99999", "out of range"),
        ("embedded:", "not a port"),
        ("embedded:0", "not a port"),
        ("embedded:x", "not a port"),
        ("memory:y", "no such broker"),
    ],
)
def test_a_url_that_nobody_understands_is_an_error_that_says_what_would_do(url: str, complaint: str) -> None:
    with pytest.raises(BusError, match=complaint) as caught:
        connect(url, ANN, [], ports=system_ports(), memory={"x": MemoryBroker()})
    assert "embedded:PORT" in str(caught.value) or "mqtt://host:port" in str(caught.value)


def test_an_error_never_shows_the_password() -> None:
    with pytest.raises(BusError) as caught:
        connect("amqp://ann:geheim@h", ANN, [], ports=system_ports())
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("broker.connect", "aiomqtt"), ("broker.embedded", "amqtt"), ("broker.mqtt", "amqtt")],
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
