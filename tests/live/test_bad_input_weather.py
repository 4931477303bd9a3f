"""A thin line, a broker that is started again and again, clocks that are a day off."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from broker import reconnecting
from broker.checkup import Level
from broker.system import system_ports
from coordinator.config import Config
from coordinator.doctor import examine as coordinator_doctor
from edge_agent import doctor as agent_doctor
from schemas.errors import TokenRefused
from schemas.limits import TOKEN_VALID_S
from tests.brokers import Mosquitto, RabbitMQ
from tests.coordinator.test_bad_input_state import DAY_S, ShiftedClock
from tests.live import plant as plants
from tests.live.plant import Door, Plant, mosquitto_door, rabbitmq_door, until
from tests.residents import Resident
from tests.slow_link import SlowLink
from tests.watch import Watch

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

LINE_BYTES_PER_S = 64_000
CHUNKS = 3  # of the twelve that two devices pull and send in a round; six more may be sent before it stops
PATIENCE_S = 120.0  # a chunk that was lost is asked for after as long as a start of the broker took


async def test_a_line_of_64_kb_per_second_carries_models_and_updates_without_a_break(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path / "broker", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
        async with SlowLink(broker.port, LINE_BYTES_PER_S) as link:
            near, far = (f"mqtt://127.0.0.1:{port}" for port in (broker.port, link.port))
            door = Door(Config(broker=near, device_urls=[far]), broker.admit)
            async with Plant(tmp_path, door, rounds=1) as plant:
                await plant.submit()
                await plant.finish()
    assert "broke" not in caplog.text


async def test_a_mosquitto_that_is_ended_again_and_again_delays_the_work_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plants, "PATIENCE_S", PATIENCE_S)
    watch = Watch()
    with Mosquitto(tmp_path / "broker", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
        async with Plant(tmp_path, mosquitto_door(broker), rounds=6, around=watch.around) as plant:
            await plant.submit()
            for number in (signal.SIGTERM, signal.SIGKILL) * 3:
                await chunks_under_way(watch)
                broker.stop(number)
                try:
                    assert "the bus connects again" in await plant.problem("the connection broke: ")
                finally:
                    broker.start()
            await plant.finish()


async def test_a_rabbitmq_that_is_ended_again_and_again_delays_the_work_and_loses_none(
    rabbitmq: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnecting, "STABLE_S", 0.0)  # its starts take long enough without a back-off
    monkeypatch.setattr(plants, "PATIENCE_S", PATIENCE_S)
    watch = Watch()
    async with Plant(tmp_path, rabbitmq_door(rabbitmq), rounds=3, around=watch.around) as plant:
        await plant.train()
        await asyncio.to_thread(rabbitmq.settle)  # all work could be done in the time that this takes
        plant.go_on()
        for number in (signal.SIGTERM, signal.SIGKILL):
            await chunks_under_way(watch)
            await asyncio.to_thread(rabbitmq.stop, number)
            try:
                assert "is it running and reachable?" in await plant.problem("cannot connect")
            finally:
                await asyncio.to_thread(rabbitmq.start)  # the tests behind this one want it, too
        await plant.finish()


async def chunks_under_way(watch: Watch) -> None:
    """Wait until so many more were sent, whoever sends them: models, updates, and what is sent again."""
    goal, reached = watch.sent.total() + CHUNKS, asyncio.Event()
    watch.look = lambda: reached.set() if watch.sent.total() >= goal else None
    try:
        async with asyncio.timeout(PATIENCE_S):
            await reached.wait()
    except TimeoutError as error:
        raise AssertionError(f"{watch.sent.total()} chunks were sent, waited for {goal}") from error


@pytest.mark.parametrize("off_s", [-DAY_S, DAY_S])
async def test_clocks_a_day_off_decide_about_tokens_alone_and_the_doctors_name_those_behind(
    tmp_path: Path, off_s: float
) -> None:
    clock, devices_clock = ShiftedClock(), ShiftedClock()
    ports, device_ports = (replace(system_ports(), clock=each) for each in (clock, devices_clock))
    with Mosquitto(tmp_path / "broker", Mosquitto.USERS + Mosquitto.DURABLE) as broker:
        door = mosquitto_door(broker)
        async with Plant(tmp_path, door, ports=ports, device_ports=device_ports) as plant:
            await plant.train()
            clock.off_s, devices_clock.off_s = off_s, -off_s
            plant.go_on()
            await until(lambda: len(plant.federation.job("job").versions) > 1)
            clock.off_s, devices_clock.off_s = -off_s, off_s
            token = await plant.federation.invite("late")
            clock.off_s += TOKEN_VALID_S + 300.0
            with pytest.raises(TokenRefused, match="the token for device late expired 5 min ago"):
                await Resident(plant.federation, "late", 1).enrol(token)
            await plant.finish()
    clock.off_s, devices_clock.off_s = clock.off_s - DAY_S, -DAY_S
    own = coordinator_doctor.machine(plant.federation.directory, plant.federation.identity, ports)
    device = plant.residents[0]
    found = [*own, *agent_doctor.machine(device.directory, device.ledger(), device_ports)]
    faults = [finding for finding in found if finding.level is Level.FAULT]
    assert [finding.name for finding in faults] == ["clock", "clock"]
    for finding, known in zip(
        faults, ("newest entry of the journal", "agent's last connection"), strict=True
    ):
        assert f"24 h before the {known}" in finding.measured
        assert "timedatectl set-ntp true" in finding.remedy
