"""RabbitMQ's certificate expired, or of a stranger: all concerned are told, and the work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from broker.amqp import QUEUE_ARGUMENTS
from coordinator.config import Config
from tests.brokers import RabbitMQ
from tests.contract.certificates import DAY, Authority, secure_rabbitmq
from tests.live.plant import INLINE, Door, Plant

pytestmark = [pytest.mark.live, pytest.mark.slow]

PROGRAMS = ("coordinator.cli", "edge_agent.cli")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RabbitMQ, Authority]]:
    with secure_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as found:
        yield found


async def renew(node: RabbitMQ) -> None:
    """RabbitMQ reads its certificate again, and everybody connects again."""
    await asyncio.to_thread(node.ctl, "eval", "ssl:clear_pem_cache().")
    await asyncio.to_thread(node.ctl, "close_all_connections", "renewed")


@pytest.mark.parametrize("fault", ["has expired", "set ca to the certificate of the authority"])
async def test_a_certificate_of_rabbitmq_that_does_not_hold_is_told_over_both_protocols(
    secure: tuple[RabbitMQ, Authority], tmp_path: Path, fault: str
) -> None:
    node, authority = secure
    amqps, mqtts = f"amqps://127.0.0.1:{node.amqps}", f"mqtts://127.0.0.1:{node.mqtts}"

    def admit(user: str, password: str, publish: Sequence[str], subscribe: Sequence[str]) -> None:
        node.operator.admit(user, password, publish, subscribe)
        if user.startswith("coordinator"):
            node.operator.declare(user, QUEUE_ARGUMENTS)

    door = Door(Config(broker=amqps, device_urls=[mqtts], ca=str(authority.path)), admit)
    async with Plant(tmp_path, door, count=INLINE) as plant:
        await plant.train()
        wrong = authority if "expired" in fault else Authority(tmp_path / "other", "another authority")
        ends = timedelta(0) if wrong is authority else DAY
        pair = wrong.issue("broker", "127.0.0.1", begins=-2 * DAY, ends=ends)
        (authority.folder / "broker.pem").write_bytes(pair.certificate.read_bytes())
        (authority.folder / "broker.key").write_bytes(pair.key.read_bytes())
        await renew(node)
        plant.go_on()
        assert f"broker 127.0.0.1:{node.amqps}: " in await plant.problem(fault)
        with plant.agent() as agent:
            await agent.says(f"broker 127.0.0.1:{node.mqtts}: ", fault)
        for program in PROGRAMS:
            assert "fault    certificate" in await plant.ask(program, "doctor")
        authority.issue("broker", "127.0.0.1")
        await renew(node)
        await plant.problem("")
        await plant.finish()
