"""The line to change at a broker, for each brand."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Brand(StrEnum):
    """Whose configuration the remedies speak of."""

    MOSQUITTO = "Mosquitto"
    RABBITMQ = "RabbitMQ"
    UNKNOWN = "unknown"


def brand_of(text: str) -> Brand:
    """From what an MQTT broker says that it is."""
    return Brand.MOSQUITTO if text.startswith("mosquitto") else Brand.UNKNOWN


def remedy(what: str, brand: Brand, **fields: str) -> str:
    """The line to change; for each brand, if ours is unknown. ``fields`` are ``topic`` and ``user``."""
    mosquitto, rabbitmq = (text.format(**fields) for text in _REMEDIES[what])
    match brand:
        case Brand.MOSQUITTO:
            return f"{mosquitto}; restart Mosquitto"
        case Brand.RABBITMQ:
            return rabbitmq
        case Brand.UNKNOWN:
            return f"Mosquitto: {mosquitto}. RabbitMQ: {rabbitmq}"


_SIZE: Final = "`max_message_size = 134217728` in rabbitmq.conf"
_REMEDIES: Final = {
    "access rules": (
        "`acl_file FILE` in mosquitto.conf, with the file that `fedbus-coordinator broker mosquitto` writes",
        "`fedbus-coordinator broker rabbitmq` sets the topic permissions of its users",
    ),
    "probe topic": (
        "`topic readwrite {topic}` below `user {user}` in its ACL file",
        "`fedbus-coordinator broker rabbitmq` lets {user} write and read {topic}",
    ),
    "anonymous login": (
        "`allow_anonymous false` in mosquitto.conf",
        "`mqtt.allow_anonymous = false` in rabbitmq.conf",
    ),
    "shared sessions": ("take `use_username_as_clientid true` out of mosquitto.conf", ""),
    "size dropped": ("`message_size_limit 0` in mosquitto.conf", _SIZE),
    "size refused": ("take `max_packet_size` out of mosquitto.conf", _SIZE),
    "queue length": (
        "`max_queued_messages 0` in mosquitto.conf",
        "take `max-length` out of the policy for MQTT queues (`rabbitmqctl list_policies`)",
    ),
    "queue bytes": (
        "`max_queued_bytes 0` in mosquitto.conf",
        "take `max-length-bytes` out of the policy for MQTT queues (`rabbitmqctl list_policies`)",
    ),
    "alarm": (
        "",
        "`vm_memory_high_watermark.relative = 0.6` in rabbitmq.conf, or more memory or disk",
    ),
    "delay": (
        "`set_tcp_nodelay true` in mosquitto.conf",
        "`mqtt.tcp_listen_options.nodelay = true` in rabbitmq.conf",
    ),
}
