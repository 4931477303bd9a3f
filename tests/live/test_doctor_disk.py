"""Both doctors on a disk that is full: they tell that, and all else that they can."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.live.fleet import AGENT, COORDINATOR, PATIENCE_S
from tests.live.test_disk_full import OnSmallDisk, fill, small_disk

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

__all__ = ["small_disk"]


@pytest.mark.parametrize("who", ["coordinator", "device-1"])
def test_a_doctor_on_a_full_disk_tells_all_that_it_can(tmp_path: Path, small_disk: Path, who: str) -> None:
    with OnSmallDisk(tmp_path / "fleet", small_disk, who) as fleet:
        program = COORDINATOR if who == "coordinator" else AGENT
        filler = fill(small_disk)
        done = subprocess.run(
            [*program, "doctor", "--json", "--dir", str(small_disk / who)],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        filler.unlink()
        assert fleet.runs("coordinator")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert {"keys", "clock", "disk", "broker"} <= set(found)
    assert found["state directory"]["level"] == found["disk"]["level"] == "fault"
    assert "No space left on device" in found["state directory"]["measured"]
    assert "free space on the file system" in found["state directory"]["remedy"]
