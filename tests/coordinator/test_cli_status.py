"""What an operator sees of messages that were refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coordinator.serving import answer, served
from tests.standin import Federation, StandIn

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
async def fed(tmp_path: Path) -> AsyncIterator[Federation]:
    async with served(tmp_path / "home") as running:
        yield running


async def refused(fed: Federation, device: StandIn, payload: bytes) -> None:
    dead = fed.coordinator.intake.dead
    before = sum(dead.counts.values())
    await device.say_bytes(payload)
    await fed.until(lambda: sum(dead.counts.values()) > before)


async def test_refused_messages_are_listed_newest_last_and_counted_by_code(
    fed: Federation, capsys: Capsys
) -> None:
    device = await fed.device("press-07")
    await refused(fed, device, b"rubbish")
    await device.bus.publish(device.up + "\x1b[2J[b]", b"twelve bytes")
    await fed.until(lambda: len(fed.coordinator.intake.dead.ring) == 2)

    found = json.loads(await answer(fed, capsys, "dead-letters", "--json"))
    assert found["counts"] == {"malformed": 2}
    first, second = found["letters"]
    assert (first["claimed"], first["code"], first["size_bytes"]) == ("press-07", "malformed", 7)
    assert (first["topic"], second["size_bytes"]) == (device.up, 12)
    assert first["wall_s"] <= second["wall_s"]

    out = await answer(fed, capsys, "dead-letters")
    assert out.splitlines()[-1] == "dead letters since the start: malformed 2"
    assert "\x1b" not in out, "a sender steers no terminal"
    assert r"press-07\x1b[2J[b]" in out


async def test_status_says_what_is_under_way_and_whether_the_disk_has_room(
    fed: Federation, capsys: Capsys
) -> None:
    out = await answer(fed, capsys, "status")
    assert "disk: has room" in out
    nothing = "0, 0 of them waiting, 0.0 of 64 MiB granted"
    assert f"uploads: {nothing}; 0 offers were put off" in out
    assert f"pulls: {nothing}" in out


async def test_status_counts_what_was_refused_and_says_where_to_look(fed: Federation, capsys: Capsys) -> None:
    out = await answer(fed, capsys, "status")
    assert "broker memory:" in out
    assert "connected" in out
    assert "dead letters: none" in out
    await refused(fed, await fed.device("press-07"), b"rubbish")
    out = await answer(fed, capsys, "status")
    assert "dead letters: malformed 1" in out
    assert f"see `fedbus-coordinator dead-letters --dir {fed.directory}`" in out
