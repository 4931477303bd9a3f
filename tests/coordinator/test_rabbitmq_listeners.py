"""RabbitMQ's listeners: open is what the URLs name, and nothing that would let a device in over AMQP."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from coordinator.broker_admin.rabbitmq_setup import listeners


@pytest.mark.parametrize(
    ("urls", "lines"),
    [
        (
            ["amqps://localhost", "mqtts://hub.example.org"],
            [
                "listeners.tcp = none",
                "listeners.ssl.default = 127.0.0.1:5671",
                "mqtt.listeners.tcp = none",
                "mqtt.listeners.ssl.default = 8883",
            ],
        ),
        (
            ["amqps://hub.example.org:5700", "mqtts://hub.example.org:8900"],
            [
                "listeners.tcp = none",
                "listeners.ssl.default = 5700",
                "mqtt.listeners.tcp = none",
                "mqtt.listeners.ssl.default = 8900",
            ],
        ),
        (
            ["mqtts://hub.example.org"],
            ["listeners.tcp = none", "mqtt.listeners.tcp = none", "mqtt.listeners.ssl.default = 8883"],
        ),
        (["mqtt://hub.example.org"], ["listeners.tcp = none"]),
        (["amqp://localhost", "mqtt://hub.example.org"], ["listeners.tcp.default = 127.0.0.1:5672"]),
        (["amqp://hub.example.org", "mqtt://hub.example.org"], []),
        (["amqp://localhost", "amqp://hub.example.org"], ["mqtt.listeners.tcp = none"]),
    ],
)
def test_only_what_the_urls_name_is_open_and_amqp_to_this_machine_alone_if_they_are_local(
    urls: list[str], lines: list[str]
) -> None:
    assert listeners([urlsplit(url) for url in urls]) == lines
