"""What RabbitMQ alone can do to us: alarms, queues that are full or missing, a limit on acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import quote

import pytest

from broker import mqtt, mqtt_client
from broker.amqp import QUEUE_ARGUMENTS
from broker.ports import Offload
from broker.system import system_ports
from tests.brokers import RabbitMQ
from tests.live.plant import INLINE, Plant, rabbitmq_door, until

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]  # a start of it included

P = ParamSpec("P")
R = TypeVar("R")


def told(log: pytest.LogCaptureFixture, *parts: str) -> bool:
    """Whether there is a line with all of these."""
    return any(all(part in line for part in parts) for line in log.messages)


@asynccontextmanager
async def memory_alarm(node: RabbitMQ) -> AsyncIterator[None]:
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "absolute", "4GB")


async def test_a_memory_alarm_is_named_and_what_it_holds_up_goes_on_when_it_is_over(
    rabbitmq: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt_client, "KEEPALIVE_S", 2)
    monkeypatch.setattr(mqtt, "HANDSHAKE_DEADLINE_S", 1.0)
    async with Plant(tmp_path, rabbitmq_door(rabbitmq)) as plant:
        async with asyncio.TaskGroup() as tasks:
            async with memory_alarm(rabbitmq):
                tasks.create_task(plant.train(), name="train")
                told = await plant.problem("RabbitMQ blocks publishers: memory or disk alarm")
                assert "free some there or raise the limit" in told
                assert told in caplog.messages
            await plant.problem("")
        async with memory_alarm(rabbitmq):
            plant.go_on()
            await plant.made()
            silence = "no answer within 1 s; is it an MQTT port, or has RabbitMQ a memory or disk alarm?"
            await until(lambda: silence in caplog.text)
            assert "fault    publishing" in await plant.ask("coordinator.cli", "doctor")
        await plant.finish()


@pytest.mark.parametrize("devices", ["mqtt", "amqp"])
async def test_what_a_full_queue_refuses_is_sent_again_once_its_reader_runs(
    rabbitmq: RabbitMQ, tmp_path: Path, devices: str, caplog: pytest.LogCaptureFixture
) -> None:
    door = rabbitmq_door(rabbitmq, devices=devices, queue={**QUEUE_ARGUMENTS, "x-max-length-bytes": 10_000})
    async with Plant(tmp_path, door, count=INLINE) as plant:
        await plant.train()
        await plant.federation.stop()
        plant.go_on()
        await plant.made()
        for resident in plant.residents:
            topic = plant.up(resident)
            said = [f"a queue for {topic} is full; it empties when its reader runs"]
            if devices == "mqtt":
                said = [f"before it answered for {topic};", "and whether a queue for this topic is full"]
            await until(partial(told, caplog, *said))
        await plant.restart()
        await plant.finish()


async def test_a_queue_that_is_missing_is_named_with_the_command_and_its_messages_are_sent_again(
    rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    door = rabbitmq_door(rabbitmq)
    async with Plant(tmp_path, door) as plant:
        await plant.train()
        await plant.federation.stop()
        queue = plant.session
        missing = f"queue {queue} is missing; `fedbus-coordinator broker rabbitmq` declares it"
        with plant.serve() as serving:
            await serving.says("connected to the broker")
            rabbitmq.operator.call("DELETE", f"queues/%2F/{quote(queue, safe='')}")
            assert missing in await serving.fails()
        plant.go_on()
        await plant.made()
        with plant.serve() as serving:
            assert missing in await serving.fails()
        assert f"there is no queue {queue}" in await plant.ask("coordinator.cli", "doctor")
        rabbitmq.operator.declare(queue, QUEUE_ARGUMENTS)
        await plant.restart()
        await plant.finish()


class HeldOffload:
    """Hands nothing on while ``open`` is not set: a disk that hangs."""

    def __init__(self, offload: Offload) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._offload = offload

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        await self.open.wait()
        return await self._offload.run(function, *args, **kwargs)


@contextmanager
def consumer_timeout(node: RabbitMQ, timeout_ms: int) -> Iterator[None]:
    settings = "application:set_env(rabbit, consumer_timeout, {}), application:set_env(rabbit, T, {})."
    settings = settings.replace("T", "channel_tick_interval")
    node.ctl("eval", settings.format(timeout_ms, 500))
    try:
        yield
    finally:
        node.ctl("eval", settings.format(1_800_000, 60_000))


@pytest.mark.parametrize("coordinator", ["amqp", "mqtt"])
async def test_what_waits_too_long_for_its_acknowledgement_comes_again_and_counts_once(
    rabbitmq: RabbitMQ, tmp_path: Path, coordinator: str, caplog: pytest.LogCaptureFixture
) -> None:
    ports = system_ports()
    disk = HeldOffload(ports.offload)
    with consumer_timeout(rabbitmq, 2_000):
        async with Plant(
            tmp_path, rabbitmq_door(rabbitmq, coordinator), ports=replace(ports, offload=disk)
        ) as plant:
            await plant.train()
            disk.open.clear()
            plant.go_on()
            told = {
                "amqp": "a delivery was not acknowledged within the broker's consumer_timeout",
                "mqtt": "the connection broke: the broker closed it",
            }[coordinator]
            problem = await plant.problem(told)
            await until(lambda: problem in caplog.messages)  # logged once the connection is gone
            disk.open.set()
            await plant.problem("")
            await plant.finish()
