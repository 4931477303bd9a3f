"""The device's doctor in a living federation, and beside its own agent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.live.fleet import AGENT, PATIENCE_S, Fleet

pytestmark = pytest.mark.live


def doctor(directory: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [*AGENT, "doctor", "--json", "--dir", str(directory)],
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_a_device_at_work_has_no_fault_with_its_agent_or_without(tmp_path: Path) -> None:
    with Fleet(tmp_path, 1) as fleet:
        (device,) = fleet.devices
        directory = fleet.agent_dir(device)
        alone = doctor(directory)
        assert "answers within" in alone["coordinator"]["measured"]
        assert "samples" in alone["data vision"]["measured"]

        fleet.run(device)
        fleet.until(lambda: any(known["tasks"] for known in fleet.ask("devices")))
        beside = doctor(directory)
        assert str(fleet.processes[device].pid) in beside["login"]["measured"]
        assert "coordinator" not in beside, "the session is the agent's"

        fleet.submit(rounds=1)
        fleet.until(fleet.finished)
        assert fleet.job()["state"] == "finished"
