"""TLS changes nothing of what passes: order, window, whole megabytes, redelivery, small packets at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker.amqp import QUEUE_ARGUMENTS
from broker.amqp_connection import Address, dial
from broker.bus import Bus, Credentials, Tls
from broker.connect import connect
from broker.mqtt import mqtt_bus
from broker.mqtt_client import MqttClient
from broker.system import system_ports
from broker.tls import tls_context
from tests.brokers import Mosquitto, RabbitMQ
from tests.contract.capabilities import WINDOW
from tests.contract.certificates import Authority, secure_rabbitmq
from tests.contract.transports import PATIENCE_S, Peer, numbered

LISTENER = (
    "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
    "certfile {base}/broker.pem\nkeyfile {base}/broker.key\n"
) + Mosquitto.DURABLE


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "tls")
    made.issue("broker", "127.0.0.1")
    return made


@pytest.mark.live
@pytest.mark.parametrize("size_bytes", [0, 1 << 10, (1 << 14) + 1, 1 << 20])
async def test_many_messages_arrive_whole_and_in_order_and_stop_at_the_window(
    authority: Authority, size_bytes: int
) -> None:
    ports = system_ports()
    credentials = Credentials("ann", tls=Tls(ca=authority.pem))
    sent = numbered(15 * WINDOW, size_bytes)
    with Mosquitto(authority.folder, LISTENER) as broker:
        async with (
            mqtt_bus(
                "127.0.0.1",
                broker.port,
                credentials,
                ["t"],
                clock=ports.clock,
                entropy=ports.entropy,
                secure=True,
                window_deliveries=WINDOW,
            ) as bus,
            asyncio.TaskGroup() as group,
        ):
            peer = Peer(bus)
            await peer.connected()
            for payload in sent:
                group.create_task(bus.publish("t", payload))
            unacked = await peer.take(WINDOW, ack=False)
            more = group.create_task(peer.take(len(sent) - WINDOW))
            await bus.publish("elsewhere", b"")
            assert not more.done()
            for delivery in reversed(unacked):
                await delivery.ack()
            assert [d.payload for d in unacked + await more] == sent


@pytest.fixture(scope="module")
def secure_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RabbitMQ, Authority]]:
    with secure_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as found:
        yield found


@pytest.mark.live
@pytest.mark.parametrize("scheme", ["mqtts", "amqps"])
async def test_a_megabyte_passes_through_rabbitmq_and_comes_again_if_it_was_not_acknowledged(
    secure_node: tuple[RabbitMQ, Authority], scheme: str
) -> None:
    node, authority = secure_node
    name, count = f"{scheme}-reader", 10  # as many as the MQTT plugin sends at once
    node.operator.admit(name, "right")
    node.operator.declare(name, QUEUE_ARGUMENTS)
    port = node.amqps if scheme == "amqps" else node.mqtts
    tls, topic = Tls(authority.pem), f"fedbus/{scheme}"
    sent = numbered(count, 1 << 20)

    def bus() -> Bus:
        url = f"{scheme}://{name}:right@127.0.0.1:{port}"
        return connect(url, Credentials(name, tls=tls), [topic], ports=system_ports())

    async with bus() as reader, asyncio.TaskGroup() as group:
        peer = Peer(reader)
        await peer.connected()
        for payload in sent:
            group.create_task(reader.publish(topic, payload))
        assert [d.payload for d in await peer.take(count, ack=False)] == sent
    async with bus() as reader:
        assert [d.payload for d in await Peer(reader).take(count)] == sent


@pytest.mark.live
async def test_small_packets_are_sent_at_once(
    authority: Authority, secure_node: tuple[RabbitMQ, Authority]
) -> None:
    node, its_authority = secure_node
    with Mosquitto(authority.folder, LISTENER) as broker:
        client = MqttClient(
            "127.0.0.1",
            broker.port,
            Credentials("ann"),
            on_message=lambda *_: None,
            on_lost=lambda: None,
        )
        try:
            await client.connect(tls_context(Tls(authority.pem)))
            plain = client._paho.socket()
            assert isinstance(plain, socket.socket)
            assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        finally:
            await client.close(politely=True)
    address = Address("127.0.0.1", node.amqps, secure=True)
    guest = Credentials("x", "guest", "guest", Tls(its_authority.pem))
    connection = await dial(address, guest, "looks", broken=lambda _: None, blocked=lambda _: None)
    try:
        sock = connection._wire.writer.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        await connection.hang_up(politely=True)
