"""What the embedded broker tells its operator about users who try topics that are not theirs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.bus import BusRefused, Credentials
from broker.connect import connect
from broker.embedded import EmbeddedBroker, write_user
from broker.embedded_server import DENIALS_LOGGED_MAX, TOPIC_CHARS_MAX
from broker.system import system_ports


async def test_denials_are_logged_with_user_and_topic_but_not_without_end(tmp_path: Path) -> None:
    ports = system_ports()
    broker = EmbeddedBroker(ports, tmp_path, 0)
    write_user(
        ports.files, broker.users_path, "mole", "p", publish=["mine"], subscribe=[], entropy=ports.entropy
    )
    await broker.ensure()
    try:
        url, mole = f"embedded:{broker.port}", Credentials("mole", "mole", "p")
        async with asyncio.timeout(60):
            async with connect(url, mole, ["#"], ports=ports) as bus:
                with pytest.raises(BusRefused):
                    await anext(bus.incoming())
            async with connect(url, mole, [], ports=ports) as bus:
                for number in range(DENIALS_LOGGED_MAX + 20):
                    await bus.publish(f"theirs/{number}/" + "x" * 1_000, b"")
    finally:
        await broker.stop()
    lines = [line for line in (tmp_path / "broker.log").read_text().splitlines() if "deni" in line]
    assert "user mole was denied to subscribe: '#'" in lines[0]
    assert "user mole was denied to publish: 'theirs/0/xxx" in lines[1]
    assert len(lines[1]) < TOPIC_CHARS_MAX + 150
    assert len(lines) == DENIALS_LOGGED_MAX + 1
    assert "more denials are not logged" in lines[-1]
