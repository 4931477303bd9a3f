"""Brokers that cannot be reached, or do not let us in: all concerned are told, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from coordinator.config import Config
from tests.brokers import Mosquitto
from tests.contract.certificates import DAY, Authority
from tests.live.plant import Door, Plant, mosquitto_door, rabbitmq_door

pytestmark = [pytest.mark.live, pytest.mark.slow]

PROGRAMS = ("coordinator.cli", "edge_agent.cli")
TLS = Mosquitto.USERS + Mosquitto.DURABLE + "certfile {base}/broker.pem\nkeyfile {base}/broker.key\n"


async def test_a_broker_that_is_not_there_is_named_and_found_when_it_comes(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker", Mosquitto.USERS + Mosquitto.DURABLE)
    there = f"127.0.0.1:{broker.port}"
    broker.start()
    async with Plant(tmp_path, mosquitto_door(broker)) as plant:
        await plant.train()
        await plant.stop_agents()
        await plant.federation.stop()
        broker.stop()
        plant.go_on()
        with plant.serve() as serving, plant.agent() as agent:
            for program in (serving, agent):
                await program.says(f"broker {there}: cannot connect", "is it running and reachable?")
            assert f"broker {there}: cannot connect" in await plant.ask("coordinator.cli", "status")
            for program_name in PROGRAMS:
                said = await plant.ask(program_name, "doctor")
                assert f"{there} cannot be reached: Connection refused" in said
                assert f"start the broker, open port {broker.port} in firewalls between" in said
            broker.start()
            for program in (serving, agent):
                await program.says("connected to the broker")
            assert f"broker mqtt://{there}: connected" in await plant.ask("coordinator.cli", "status")
        await plant.restart()
        plant.start_agents()
        await plant.finish()
    broker.stop()


@pytest.fixture(params=["mosquitto", "rabbitmq, mqtt", "rabbitmq, amqp"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    if request.param == "mosquitto":
        with Mosquitto(tmp_path / "broker", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
            yield mosquitto_door(broker)
    else:
        _, protocol = request.param.split(", ")
        yield rabbitmq_door(request.getfixturevalue("rabbitmq"), protocol, protocol)


async def test_a_password_that_is_refused_is_said_with_the_user_and_the_work_goes_on_with_the_right_one(
    door: Door, tmp_path: Path
) -> None:
    async with Plant(tmp_path, door) as plant:
        await plant.train()
        await plant.stop_agents()
        await plant.federation.stop()
        plant.go_on()
        users = [plant.session, plant.spare.session]
        for user in users:
            door.change(user, password="another")
        with plant.serve() as serving, plant.agent() as agent:
            told = [await serving.fails(), await agent.fails()]
        for user, line, program in zip(users, told, PROGRAMS, strict=True):
            assert user in line
            assert "refuse" in line
            assert f"user '{user}'" in await plant.ask(program, "doctor")
        door.restore(plant.session)
        await plant.restart()
        plant.start_agents()
        await plant.finish()


@pytest.mark.parametrize("fault", ["has expired", "set ca to the certificate of the authority"])
async def test_a_certificate_that_does_not_hold_is_told_and_the_work_goes_on_with_one_that_does(
    tmp_path: Path, fault: str
) -> None:
    broker = Mosquitto(tmp_path / "broker", TLS)
    authority = Authority(tmp_path / "broker")
    authority.issue("broker", "127.0.0.1")
    broker.start()
    url = f"mqtts://127.0.0.1:{broker.port}"
    async with Plant(tmp_path, Door(Config(broker=url, ca=str(authority.path)), broker.admit)) as plant:
        await plant.train()
        broker.stop()
        wrong = authority if "expired" in fault else Authority(tmp_path / "other", "another authority")
        pair = wrong.issue(
            "broker", "127.0.0.1", begins=-2 * DAY, ends=timedelta(0) if wrong is authority else DAY
        )
        (authority.folder / "broker.pem").write_bytes(pair.certificate.read_bytes())
        (authority.folder / "broker.key").write_bytes(pair.key.read_bytes())
        broker.start()
        plant.go_on()
        assert f"broker 127.0.0.1:{broker.port}: " in await plant.problem(fault)
        with plant.agent() as agent:
            await agent.says(fault)
        for program in PROGRAMS:
            said = await plant.ask(program, "doctor")
            assert "fault    certificate" in said
            assert ("`certfile`" if "expired" in fault else 'ca = "ca.pem"') in said
        broker.stop()
        authority.issue("broker", "127.0.0.1")
        broker.start()
        await plant.problem("")
        await plant.finish()
    broker.stop()
