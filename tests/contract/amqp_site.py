"""A user of RabbitMQ, set up as an operator does, and what an operator may do to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from urllib.parse import quote

from broker.amqp import QUEUE_ARGUMENTS, amqp_bus
from broker.bus import Bus, BusUndelivered, Credentials
from broker.system import system_ports
from tests.brokers import RabbitMQ

_numbers = count()


class Site:
    """A user with a queue of its own."""

    def __init__(self, node: RabbitMQ) -> None:
        self.node = node
        self.name = f"amqp-{next(_numbers)}@3fa94c10"
        self.topic = f"fedbus/{self.name}/up"
        self.declare()
        self.grant()

    def declare(self, **arguments: str | int) -> None:
        self.node.operator.declare(self.name, {**QUEUE_ARGUMENTS, **arguments})

    def delete(self) -> None:
        self.node.operator.call("DELETE", f"queues/%2F/{quote(self.name, safe='')}")

    def grant(
        self, *, configure: str = "^$", write: str = "", read: str = "", topics: Sequence[str] = (".*", ".*")
    ) -> None:
        own = f"^({self.name}|amq\\.topic)$"
        rights = {"configure": configure, "write": write or own, "read": read or own}
        rules = {"exchange": "amq.topic", "write": topics[0], "read": topics[1]}
        user = quote(self.name, safe="")
        self.node.operator.call("PUT", f"users/{user}", {"password": "right", "tags": ""})
        self.node.operator.call("PUT", f"permissions/%2F/{user}", rights)
        self.node.operator.call("PUT", f"topic-permissions/%2F/{user}", rules)

    def bus(
        self,
        *subscriptions: str,
        port: int = 0,
        password: str = "right",
        vhost: str = "/",
        durable: bool = True,
    ) -> Bus:
        ports = system_ports()
        return amqp_bus(
            "127.0.0.1",
            port or self.node.amqp,
            Credentials(self.name, self.name, password, durable=durable),
            subscriptions,
            clock=ports.clock,
            entropy=ports.entropy,
            vhost=vhost,
        )


@contextmanager
def alarm(node: RabbitMQ) -> Iterator[None]:
    """Too little memory, as RabbitMQ believes."""
    node.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield
    finally:
        node.ctl("set_vm_memory_high_watermark", "absolute", "4GB")


async def publish_until_refused(bus: Bus, topic: str) -> tuple[int, BusUndelivered]:
    """How many messages were taken, and why the next was not."""
    for number in count():
        try:
            await bus.publish(topic, bytes(200))
        except BusUndelivered as error:
            return number, error
    raise AssertionError
