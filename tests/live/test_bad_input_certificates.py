"""RabbitMQ's certificate, or one that it is shown, expired or of a stranger: all concerned are told, and the
work goes on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from broker.amqp import QUEUE_ARGUMENTS
from coordinator.config import Config
from tests.brokers import RabbitMQ
from tests.contract.certificates import DAY, Authority, Pair, secure_rabbitmq
from tests.live.plant import INLINE, Door, Plant

pytestmark = [pytest.mark.live, pytest.mark.slow]

REFUSED = "it ended the connection right after TLS began, before it answered: "
PROGRAMS = ("coordinator.cli", "edge_agent.cli")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RabbitMQ, Authority]]:
    with secure_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as found:
        yield found


def secure_door(node: RabbitMQ, authority: Authority, own: Pair | None = None) -> Door:
    """The coordinator over AMQP, which shows its ``own`` certificate; devices over MQTT, which show none."""

    def admit(user: str, password: str, publish: Sequence[str], subscribe: Sequence[str]) -> None:
        node.operator.admit(user, password, publish, subscribe)
        if user.startswith("coordinator"):
            node.operator.declare(user, QUEUE_ARGUMENTS)

    config = Config(
        broker=f"amqps://127.0.0.1:{node.amqps}",
        device_urls=[f"mqtts://127.0.0.1:{node.mqtts}"],
        ca=str(authority.path),
        certificate=str(own.certificate) if own else "",
        key=str(own.key) if own else "",
    )
    return Door(config, admit)


async def renew(node: RabbitMQ) -> None:
    """RabbitMQ reads its certificate again, and everybody connects again."""
    await asyncio.to_thread(node.ctl, "eval", "ssl:clear_pem_cache().")
    await asyncio.to_thread(node.ctl, "close_all_connections", "renewed")


@pytest.mark.parametrize("fault", ["has expired", "set ca to the certificate of the authority"])
async def test_a_certificate_of_rabbitmq_that_does_not_hold_is_told_over_both_protocols(
    secure: tuple[RabbitMQ, Authority], tmp_path: Path, fault: str
) -> None:
    node, authority = secure
    async with Plant(tmp_path, secure_door(node, authority), count=INLINE) as plant:
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


async def test_a_certificate_of_ours_that_rabbitmq_refuses_is_told_over_both_protocols(
    secure: tuple[RabbitMQ, Authority], tmp_path: Path
) -> None:
    node, authority = secure
    own = authority.issue("coordinator", client=True)
    async with Plant(tmp_path, secure_door(node, authority, own), count=INLINE) as plant:
        await plant.train()
        authority.issue("coordinator", begins=-2 * DAY, ends=-DAY, client=True)
        await renew(node)
        plant.go_on()
        told = await plant.problem(REFUSED)
        assert f"broker 127.0.0.1:{node.amqps}: " in told
        assert f"(we show certificate {own.certificate})" in told
        for name, path in (("client.crt", own.certificate), ("client.key", own.key)):
            shutil.copy(path, plant.spare.directory / name)
        with plant.agent() as agent:
            await agent.says(f"broker 127.0.0.1:{node.mqtts}: {REFUSED}", "client.crt)")
        for program in PROGRAMS:
            assert REFUSED in await plant.ask(program, "doctor")
        authority.issue("coordinator", client=True)
        await plant.problem("")
        await plant.finish()
