"""What somebody tests with the plugin. Not named as a test: it runs in a project of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.bus import Connected
from broker.faults import FaultPlan, Faults
from coordinator.testing import Buses, ManualClock, Replayed, assert_replays


def test_a_recorded_federation_replays(fedbus_recording: Path) -> None:
    assert_replays(fedbus_recording)


@pytest.mark.fedbus(recording="recordings/own")
def test_a_recording_of_ones_own_replays(fedbus_recording: Path) -> None:
    assert "job-1" in assert_replays(fedbus_recording)["jobs"]


def test_a_changed_recording_does_not(fedbus_recording: Path) -> None:
    body = next((fedbus_recording / "bodies").iterdir())
    body.write_bytes(body.read_bytes()[:-1] + b"!")
    with pytest.raises(AssertionError, match="damaged at byte"):
        assert_replays(fedbus_recording)


def test_a_replayed_coordinator_knows_its_devices_and_models(fedbus_replayed: Replayed) -> None:
    assert sorted(fedbus_replayed.state.devices) == ["device-1", "device-2", "device-3"]
    versions = fedbus_replayed.state.jobs["job-1"].versions
    assert [version.model.hex() for version in versions] == fedbus_replayed.versions["job-1"]


def test_a_clock_stands_until_it_is_told(fedbus_clock: ManualClock) -> None:
    before = fedbus_clock.monotonic_s(), fedbus_clock.wall_s()
    fedbus_clock.advance(60.0)
    assert (fedbus_clock.monotonic_s(), fedbus_clock.wall_s()) == (before[0] + 60.0, before[1] + 60.0)
    with pytest.raises(ValueError, match="does not pass"):
        fedbus_clock.advance(-1.0)


async def arrived(buses: Buses) -> list[bytes]:
    """Which of 20 messages a lossy bus delivers."""
    plan = FaultPlan(sending=Faults(drop=0.5))
    found: list[bytes] = []
    async with buses("press-07", plan=plan) as sender, buses("hall", ["up/#"]) as reader:
        incoming = reader.incoming()
        assert isinstance(await anext(incoming), Connected)
        for number in range(20):
            await sender.publish("up/press-07", b"%d" % number)
        sender.calm()
        await sender.publish("up/press-07", b"end")
        while not found or found[-1] != b"end":
            item = await anext(incoming)
            assert not isinstance(item, Connected)
            await item.ack()
            found.append(item.payload)
    return found[:-1]


@pytest.mark.fedbus(seed=3)
def test_faults_come_from_the_seed(fedbus_bus: Buses) -> None:
    found = asyncio.run(arrived(fedbus_bus))
    assert 0 < len(found) < 20
    assert found == asyncio.run(arrived(Buses(seed=3))) != asyncio.run(arrived(Buses(seed=4)))
