"""RabbitMQ's permissions: patterns that fit a user's own, and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.broker_admin.rabbitmq import Protocols, permissions, topic_permissions
from coordinator.broker_admin.roster import Login, user
from schemas import topics
from schemas.ids import COORDINATOR, DeviceId, FederationId, broker_user

FEDERATION = FederationId(bytes(range(16)))
LOGIN = Login("", "")
names = st.from_regex(r"\A[A-Za-z0-9_-]{1,20}\Z").filter(lambda name: name != COORDINATOR).map(DeviceId)


def key(topic: str) -> str:
    return topic.replace("/", ".").replace("+", "*")


def fits(pattern: str, text: str) -> bool:
    """As RabbitMQ asks: anywhere in the text, so the pattern must hold its ends itself."""
    return re.search(pattern, text) is not None


@given(own=names, other=names)
def test_a_device_may_use_its_own_two_topics_and_no_others(own: DeviceId, other: DeviceId) -> None:
    allowed = topic_permissions(user(FEDERATION, own, LOGIN))
    up, down = (key(topic(FEDERATION, own)) for topic in (topics.up, topics.down))
    assert (fits(allowed["write"], up), fits(allowed["read"], down)) == (True, True)
    strange = [key(topic(FEDERATION, other)) for topic in (topics.up, topics.down)] if other != own else []
    strange += [
        up + ".x",
        "x." + up,
        down + ".x",
        key(topics.all_up(FEDERATION)),
        key(topics.all_down(FEDERATION)),
        "#",
    ]
    for routing_key in [*strange, down]:
        assert not fits(allowed["write"], routing_key)
    for binding_key in [*strange, up]:
        assert not fits(allowed["read"], binding_key)


@pytest.mark.parametrize("speaks", [Protocols(mqtt=True, amqp=False), Protocols(mqtt=False, amqp=True)])
@given(own=names, other=names)
def test_a_device_reaches_its_own_queue_and_no_other(
    speaks: Protocols, own: DeviceId, other: DeviceId
) -> None:
    session = broker_user(FEDERATION, own)
    allowed = permissions(session, speaks)
    queue = session if speaks.amqp else f"mqtt-subscription-{session}qos1"
    assert [fits(allowed[verb], queue) for verb in ("configure", "write", "read")] == [
        speaks.mqtt,
        True,
        True,
    ]
    assert [fits(allowed[verb], "amq.topic") for verb in ("configure", "write", "read")] == [
        False,
        True,
        True,
    ]
    strange = ["amq.default", "amq.fanout", "amqxtopic", f"{queue}x", f"x{queue}"]
    if own != other:
        foreign = broker_user(FEDERATION, other)
        strange += [foreign, f"mqtt-subscription-{foreign}qos1"]
    for resource in strange:
        assert not any(fits(pattern, resource) for pattern in allowed.values())


def test_the_coordinator_speaks_to_every_device_and_hears_every_one() -> None:
    allowed = topic_permissions(user(FEDERATION, COORDINATOR, LOGIN))
    press = DeviceId("press-07")
    assert fits(allowed["read"], key(topics.all_up(FEDERATION)))
    assert fits(allowed["write"], key(topics.down(FEDERATION, press)))
    assert fits(allowed["write"], key(topics.probe(FEDERATION)))
    for routing_key in (key(topics.up(FEDERATION, press)), key(topics.down(FederationId(bytes(16)), press))):
        assert not fits(allowed["write"], routing_key)


@pytest.mark.parametrize(
    ("urls", "mqtt", "amqp"),
    [(["mqtt://a"], True, False), (["amqps://a"], False, True), (["mqtts://a", "amqp://a"], True, True)],
)
def test_permissions_follow_the_urls(urls: list[str], mqtt: bool, amqp: bool) -> None:
    assert Protocols.of(urls) == Protocols(mqtt=mqtt, amqp=amqp)
