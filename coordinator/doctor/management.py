"""What RabbitMQ's management API tells the doctor: alarms, policies that drop messages, and its time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from shlex import quote
from typing import Any, Final

from broker.amqp import QUEUE_ARGUMENTS
from broker.checkup import Finding, Level, clock_compared, told
from broker.connect import LOOPBACK
from broker.ports import Clock
from broker.reach import endpoint
from coordinator.broker_admin.management import Management, ManagementError
from coordinator.config import Config
from schemas.ids import COORDINATOR, FederationId, broker_user

DROPPING: Final = ("expires", "max-length", "max-length-bytes", "message-ttl")
"""In a policy for our queues, each of these makes messages vanish, or refuses them."""
ALARMS: Final = {
    "mem_alarm": ("memory", "`vm_memory_high_watermark.relative = 0.6` in rabbitmq.conf, or more memory"),
    "disk_free_alarm": (
        "disk",
        "free space on its disk, or `disk_free_limit.absolute = 1GB` in rabbitmq.conf",
    ),
}

AMQP_SETTINGS: Final = {"amqp": "listeners.tcp", "amqp/ssl": "listeners.ssl"}
"""Of RabbitMQ's listeners, by what it calls their protocols."""


def examine(api: Management, config: Config, federation: FederationId, clock: Clock) -> Iterator[Finding]:
    """All that the API tells; blocks."""
    vhost = config.vhost
    try:
        yield from alarms(api.get("nodes"))
        yield from ports(api.get("overview")["listeners"], config.broker)
        bounding = [
            *policies(api.get("policies", vhost), vhost, federation),
            *policies(api.get("operator-policies", vhost), vhost, federation, "operator_policy"),
        ]
        yield from bounding or [Finding("policies", Level.OK, "none bounds what waits in our queues")]
        its_wall_s = api.wall_s()
    except ManagementError as error:
        yield told("management", error)
    else:
        yield clock_compared(clock.wall_s(), its_wall_s, "RabbitMQ's machine")


def alarms(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    """While one stands, RabbitMQ reads nothing from connections that publish."""
    found = [(node["name"], alarm) for node in nodes for alarm in ALARMS if node.get(alarm)]
    for name, alarm in found:
        what, remedy = ALARMS[alarm]
        measured = f"{what} alarm on node {name}: nobody can publish"
        yield Finding("alarms", Level.FAULT, measured, remedy)
    silent = [node["name"] for node in nodes if not ALARMS.keys() <= node.keys()]
    if silent:  # it is down, or has only just begun
        yield Finding("alarms", Level.UNKNOWN, f"node {silent[0]} does not tell whether it has an alarm")
    elif not found:
        yield Finding("alarms", Level.OK, f"none on {len(nodes)} node{'s' if len(nodes) > 1 else ''}")


def ports(listeners: list[dict[str, Any]], url: str) -> Iterator[Finding]:
    """Whether AMQP is open to other machines than RabbitMQ's, for a coordinator that connects to ``url``.

    A device's password is good for AMQP, too, where it can pass the topic permissions
    (`broker.connect.check_device_url`).
    """
    needed = url.startswith("amqp") and endpoint(url).host not in LOOPBACK
    found = [item for item in listeners if item["protocol"] in AMQP_SETTINGS]
    wide = [item for item in found if not ip_address(item["ip_address"]).is_loopback]
    for item in wide:
        setting, port = AMQP_SETTINGS[item["protocol"]], item["port"]
        measured = f"AMQP is open on port {port} of {item['ip_address']}; devices must not get there"
        if needed:
            remedy = f"a firewall that lets the coordinator's machine alone to port {port}"
            yield Finding("ports", Level.UNKNOWN, f"{measured}: a firewall can't be seen from here", remedy)
        else:
            remedy = f"`{setting}.default = {LOOPBACK[0]}:{port}` in rabbitmq.conf"
            yield Finding("ports", Level.WARNING, measured, f"{remedy}, or a firewall that closes the port")
    if found and not wide:
        yield Finding("ports", Level.OK, "AMQP is open to RabbitMQ's own machine only")


def policies(
    known: list[dict[str, Any]], vhost: str, federation: FederationId, kind: str = "policy"
) -> Iterator[Finding]:
    """Those that drop what waits in the queue of the coordinator, or of a device: of all that match, only
    the one with the highest priority applies. ``kind`` is what `rabbitmqctl` calls them."""
    ours = [
        broker_user(federation, COORDINATOR),
        f"mqtt-subscription-{broker_user(federation, 'device')}qos1",
    ]
    applied = {policy["name"]: policy for queue in ours for policy in _applied(known, queue)}
    for name, policy in applied.items():
        wrong = [key for key in DROPPING if key in policy["definition"]]
        if wrong:
            what = f"{kind.replace('_', ' ')} {name!r}"
            measured = f"{what} drops or refuses messages in our queues: {', '.join(wrong)}"
            remedy = (
                f"`rabbitmqctl clear_{kind} -p {quote(vhost)} {quote(name)}`, or take {' and '.join(wrong)} "
                f"out of it, or our queues out of its pattern"
            )
            yield Finding("policies", Level.FAULT, measured, remedy)


def differences(api: Management, vhost: str, queue: str) -> dict[str, str] | None:
    """As in `broker.amqp_look.QueueLook`; None if the API does not tell. Blocks."""
    try:
        known = api.get("queues", vhost, queue)
    except ManagementError:
        return None
    found, wanted = known["arguments"], QUEUE_ARGUMENTS
    wrong = {
        key: str(found.get(key, "none"))
        for key in (*wanted, *(found.keys() - wanted.keys()))
        if found.get(key) != wanted.get(key)
    }
    return wrong if known["durable"] else wrong | {"durable": "false"}


def _applied(known: list[dict[str, Any]], queue: str) -> list[dict[str, Any]]:
    """RabbitMQ's patterns are PCRE: one that Python cannot read is taken to match, beside the others."""
    certain, unread = [], []
    for policy in known:
        if policy["apply-to"] == "exchanges":
            continue
        try:
            if re.search(policy["pattern"], queue):
                certain.append(policy)
        except re.error:
            unread.append(policy)
    highest = max((policy.get("priority", 0) for policy in certain), default=0)
    return unread + [policy for policy in certain if policy.get("priority", 0) == highest]
