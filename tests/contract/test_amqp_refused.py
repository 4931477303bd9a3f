"""What a RabbitMQ that is set up wrongly says, and what AMQP cannot carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.amqp import binding_key, routing_key
from broker.bus import BusError, BusRefused, Connected, Credentials
from broker.connect import connect
from broker.system import system_ports
from tests.brokers import RabbitMQ
from tests.contract.amqp_site import Site
from tests.contract.problems import problem
from tests.contract.transports import PATIENCE_S, Peer


@pytest.fixture
def site(rabbitmq: RabbitMQ) -> Site:
    return Site(rabbitmq)


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@pytest.mark.live
async def test_a_missing_queue_is_refused_with_the_command_that_makes_it(site: Site) -> None:
    site.delete()
    async with site.bus(site.topic) as bus:
        with pytest.raises(BusRefused, match=f"queue {site.name} is missing; `fedbus-coordinator broker rab"):
            await Peer(bus).connected()


@pytest.mark.live
@pytest.mark.parametrize(
    ("granted", "lacking"),
    [
        ({"write": "^$"}, "access to queue"),
        ({"read": "^amq\\.topic$"}, "access to queue"),
        ({"read": "^amqp-.*$"}, "access to exchange 'amq.topic'"),
        ({"topics": (".*", "^fedbus\\.other$")}, "access to topic 'fedbus"),
    ],
    ids=["write-queue", "read-queue", "read-exchange", "read-topic"],
)
async def test_a_lacking_right_is_refused_and_named(
    site: Site, granted: dict[str, str], lacking: str
) -> None:
    site.grant(**granted)
    async with site.bus(site.topic) as bus:
        with pytest.raises(BusRefused, match=f"user '{site.name}' lacks a right: .*{lacking}.*grants it"):
            await Peer(bus).connected()


@pytest.mark.live
async def test_a_wrong_password_is_refused_with_user_and_remedy(site: Site) -> None:
    async with site.bus(site.topic, password="geheim") as bus:
        with pytest.raises(BusRefused, match=f"user '{site.name}' refused: .*check user name") as caught:
            await Peer(bus).connected()
    assert "geheim" not in str(caught.value)


@pytest.mark.live
@pytest.mark.parametrize(("vhost", "cause"), [("nowhere", "not found"), ("locked", "refused for user")])
async def test_a_virtual_host_that_is_missing_or_locked_is_refused(
    site: Site, vhost: str, cause: str
) -> None:
    site.node.operator.call("PUT", "vhosts/locked", {})
    async with site.bus(vhost=vhost) as bus:
        with pytest.raises(BusRefused, match=f"may not use the virtual host '{vhost}': .*{cause}"):
            await bus.publish(site.topic, b"x")


@pytest.mark.live
async def test_a_limit_of_connections_is_waited_for(site: Site) -> None:
    limit = f"user-limits/{quote(site.name, safe='')}/max-connections"
    site.node.operator.call("PUT", limit, {"value": 1})
    async with site.bus(site.topic) as bus:
        await problem(bus, "user connection limit (1) is reached")
        site.node.operator.call("DELETE", limit)
        assert await Peer(bus).connected() == Connected(1)


@pytest.mark.live
async def test_over_mqtt_a_limit_of_connections_is_a_refusal_that_names_limits(site: Site) -> None:
    limit = f"user-limits/{quote(site.name, safe='')}/max-connections"
    site.node.operator.call("PUT", limit, {"value": 0})
    url = f"mqtt://{quote(site.name, safe='')}:right@127.0.0.1:{site.node.mqtt}"
    async with connect(url, Credentials(site.name), [], ports=system_ports()) as bus:
        with pytest.raises(BusRefused, match="on RabbitMQ limits of connections"):
            await bus.publish(site.topic, b"x")


levels = st.text(st.characters(exclude_characters="./+#\0", codec="utf-8"), max_size=8)


@given(st.lists(levels, min_size=1, max_size=4))
def test_a_topic_is_its_routing_key_with_dots(names: list[str]) -> None:
    assert routing_key("/".join(names)).replace(".", "/") == "/".join(names)


def test_a_filter_is_a_binding_key() -> None:
    assert binding_key("fedbus/+/up/#") == "fedbus.*.up.#"


@pytest.mark.parametrize("topic", ["fedbus/a.b", "x" * 256, "ä" * 128])
def test_a_topic_that_amqp_cannot_carry_is_an_error(topic: str) -> None:
    with pytest.raises(BusError, match=r"on AMQP|AMQP carries 255 bytes"):
        routing_key(topic)
