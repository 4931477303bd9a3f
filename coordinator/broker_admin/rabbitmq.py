"""RabbitMQ (3.10 or later): users, permissions and queues through its management API.

Measured on 3.10.8. Every operation that a permission denies shows in its log with user and topic, and closes
the channel (AMQP) or the connection (MQTT). A user that is deleted loses its connections at once. A device
may push another's connection out by naming its client id, for which there is no permission; that gets it
nothing, because the session's queue is closed to it. Over AMQP topic permissions are asked for a message's
routing key alone: copies that its headers ``CC`` and ``BCC`` name pass. So AMQP is to be closed to devices,
and `rabbitmq_setup` opens it no further than the URLs say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from broker.amqp import EXCHANGE, QUEUE_ARGUMENTS, binding_key
from broker.ports import Ports
from coordinator.broker_admin.management import Management, ManagementError
from coordinator.broker_admin.roster import AccessError, Login, User, is_tap, user
from coordinator.config import MANAGEMENT_PASSWORD, Config
from coordinator.connection import PROBES, authority, probe_session
from schemas.ids import COORDINATOR, DeviceId, FederationId, broker_user

HASHING: Final = "rabbit_password_hashing_sha256"
NO_VHOST: Final = "vhost_or_user_not_found"
MQTT_PLUGIN: Final = "rabbitmq_mqtt"
NAME: Final = "[A-Za-z0-9_-]+"  # what a + in one of our topic filters may stand for


@dataclass(frozen=True, slots=True)
class Protocols:
    """How a party may speak: each protocol takes permissions of its own."""

    mqtt: bool
    amqp: bool

    @staticmethod
    def of(urls: Iterable[str]) -> Protocols:
        """Those of these URLs."""
        amqp = [url.startswith("amqp") for url in urls]
        return Protocols(mqtt=not all(amqp), amqp=any(amqp))


def permissions(session: str, speaks: Protocols, probes: Sequence[str] = ()) -> dict[str, str]:
    """What a user may do: read the queue of its ``session``, and publish to the one exchange.

    An AMQP session's queue is made for it; an MQTT session makes its own, and ``probes`` make theirs, over
    MQTT too: they try out the devices' door.
    """
    names = [re.escape(name) for name in (session, *probes)]
    queues, configured = (names, names[1:]) if speaks.amqp else ([], [])
    mqtt = [f"mqtt-subscription-{name}qos[01]" for name in (names if speaks.mqtt else names[1:])]
    queues, configured = queues + mqtt, configured + mqtt
    used = _any([*queues, re.escape(EXCHANGE)])
    return {"configure": _any(configured), "write": used, "read": used}


def tap_permissions(session: str) -> dict[str, str]:
    """What a tap may do: make, bind and read a queue of its own, over either protocol. It may write to no
    exchange, so no header of a message helps it past its topic permissions either."""
    queues = [re.escape(session), f"mqtt-subscription-{re.escape(session)}qos[01]"]
    return {"configure": _any(queues), "write": _any(queues), "read": _any([*queues, re.escape(EXCHANGE)])}


def topic_permissions(known: User) -> dict[str, str]:
    """Where a user may publish, and to what it may bind its queue."""
    return {"exchange": EXCHANGE, "write": _keys(known.publish), "read": _keys(known.subscribe)}


def _keys(filters: Iterable[str]) -> str:
    # A binding key is matched as it is written, so a pattern must match its own wildcard.
    patterns = [re.escape(binding_key(text)).replace(r"\*", rf"({NAME}|\*)") for text in filters]
    return _any(patterns)


def _any(patterns: list[str]) -> str:
    return f"^({'|'.join(patterns)})$" if patterns else "^$"


class RabbitUsers:
    """The users of one federation at RabbitMQ (`access.Users`). ``management`` is None if nobody gave this
    coordinator the right to change them."""

    overhears = False

    def __init__(self, management: Management | None, config: Config, federation: FederationId) -> None:
        self._management = management
        self._config = config
        self._federation = federation
        self._coordinator = Protocols.of([config.broker])
        self._devices = Protocols.of(config.urls_for_devices())

    @staticmethod
    def of(ports: Ports, directory: Path, config: Config, federation: FederationId) -> RabbitUsers:
        """With the credentials that are stored, if they are. Raises `coordinator.config.ConfigError`."""
        path = directory / MANAGEMENT_PASSWORD
        management = None
        if ports.files.exists(path):
            password = ports.files.read(path).decode().strip()
            management = Management(config.management, password, authority(config, ports.files))
        return RabbitUsers(management, config, federation)

    def update(self, logins: Mapping[DeviceId, Login], changed: DeviceId) -> str:
        """Raises `ManagementError`."""
        if self._management is None:
            return (
                "RabbitMQ does not know of this yet; its administrator must run `fedbus-coordinator broker "
                f"rabbitmq --management {self._config.management} --management-password-file FILE --dir DIR`"
            )
        if changed in logins:
            self._admit(self._management, changed, logins[changed])
        else:
            self._shut_out(self._management, changed)
        return ""

    def set_up(self, logins: Mapping[DeviceId, Login]) -> dict[str, Any]:
        """Virtual host, users, permissions, queues: as they have to be for these users, whatever there is
        now. Says what was done. Raises `ManagementError`."""
        management = self._management
        if management is None:
            raise AccessError("RabbitMQ: no credentials for its management API")
        self._check_plugins(management)
        vhosts = {found["name"] for found in management.get("vhosts")}
        if self._config.vhost not in vhosts:
            management.put("vhosts", self._config.vhost, body={})
        for device, login in sorted(logins.items()):
            self._admit(management, device, login)
        gone = self._strangers(management, logins)
        for device in gone:
            self._shut_out(management, device)
        return {
            "rabbitmq": management.get("overview").get("rabbitmq_version", ""),
            "vhost": self._config.vhost,
            "users": [broker_user(self._federation, device) for device in sorted(logins)],
            "removed": [broker_user(self._federation, device) for device in gone],
        }

    def _check_plugins(self, management: Management) -> None:
        if not (self._coordinator.mqtt or self._devices.mqtt):
            return
        for node in management.get("nodes"):
            # A node that has just started does not tell yet.
            if MQTT_PLUGIN not in node.get("enabled_plugins", [MQTT_PLUGIN]):
                raise ManagementError(
                    f"RabbitMQ node {node.get('name')}: plugin {MQTT_PLUGIN} is not enabled, for URLs with "
                    f"mqtt: `rabbitmq-plugins enable {MQTT_PLUGIN}`"
                )

    def _strangers(self, management: Management, logins: Mapping[DeviceId, Login]) -> list[DeviceId]:
        """Users of this federation that are in no roster: revoked while RabbitMQ could not be told."""
        suffix = broker_user(self._federation, "")
        names = [str(found["name"]) for found in management.get("users")]
        ours = [DeviceId(name.removesuffix(suffix)) for name in names if name.endswith(suffix)]
        return sorted(device for device in ours if device not in logins)

    def _admit(self, management: Management, device: DeviceId, login: Login) -> None:
        vhost, session = self._config.vhost, broker_user(self._federation, device)
        ours = device == COORDINATOR
        speaks = self._coordinator if ours else self._devices
        known = user(self._federation, device, login, self._config.username if ours else "")
        probes = [probe_session(session, name) for name in PROBES] if ours else []
        tap = is_tap(device)
        allowed = tap_permissions(session) if tap else permissions(session, speaks, probes)
        body = {"password_hash": login.rabbitmq, "hashing_algorithm": HASHING, "tags": ""}
        management.put("users", known.name, body=body)
        try:
            management.put("permissions", vhost, known.name, body=allowed)
        except ManagementError as error:
            if NO_VHOST not in str(error):
                raise
            raise ManagementError(
                f"RabbitMQ: there is no virtual host {vhost}; `fedbus-coordinator broker rabbitmq` makes it"
            ) from error
        management.put("topic-permissions", vhost, known.name, body=topic_permissions(known))
        if speaks.amqp and not tap:  # whose queue ends with its connection
            self._declare(management, session, binding_key(known.subscribe[0]))

    def _declare(self, management: Management, queue: str, key: str) -> None:
        """Raises `ManagementError`, which says so if there is one with other arguments."""
        vhost = self._config.vhost
        try:
            management.put("queues", vhost, queue, body={"durable": True, "arguments": QUEUE_ARGUMENTS})
        except ManagementError as error:
            if error.status != HTTPStatus.BAD_REQUEST:
                raise
            raise ManagementError(
                f"{error}; delete that queue and run this again: `rabbitmqctl delete_queue {queue}`"
            ) from error
        management.post("bindings", vhost, "e", EXCHANGE, "q", queue, body={"routing_key": key})

    def _shut_out(self, management: Management, device: DeviceId) -> None:
        name = broker_user(self._federation, device)
        management.delete("users", name)
        for queue in (name, f"mqtt-subscription-{name}qos1"):
            management.delete("queues", self._config.vhost, queue)
