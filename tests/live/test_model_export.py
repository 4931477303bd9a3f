"""What a device's owner gets for taking part: the very model that the coordinator has, also offline."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from edge_agent.tasks.vision import VisionTask
from tests.live.fleet import AGENT, COORDINATOR, Fleet

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


def models(fleet: Fleet, device: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(
        fleet.call(AGENT, "model", "list", "--json", "--dir", str(fleet.agent_dir(device)))
    )
    return listed


def has_last(fleet: Fleet, device: str) -> bool:
    return [(model["last"], model["whole"]) for model in models(fleet, device)] == [(True, True)]


def exported(fleet: Fleet, device: str) -> Path:
    out = fleet.directory / f"{device}.safetensors"
    fleet.call(AGENT, "model", "export", "digits", str(out), "--dir", str(fleet.agent_dir(device)))
    return out


def accuracy(path: Path, test: Path) -> float:
    """What the file's model scores, built by nothing but what the file says of itself."""
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    assert told["fedbus.task"] == "vision"
    task = VisionTask({**json.loads(told["fedbus.config"]), "held_out": 0})
    model = task.build()
    model.load_state_dict(load_file(path))
    return task.evaluate(model, task.load(test))["accuracy"]


def test_every_device_exports_the_coordinators_last_version_to_the_byte(tmp_path: Path) -> None:
    with Fleet(tmp_path, 3) as fleet:
        fleet.run_all()
        fleet.submit(rounds=3)
        fleet.until(fleet.finished, 120.0)
        theirs = tmp_path / "coordinator.safetensors"
        fleet.call(COORDINATOR, "models", "export", "digits", str(theirs), "--dir", str(fleet.home))
        for device in fleet.devices:
            fleet.until(partial(has_last, fleet, device))
        online, *others = fleet.devices
        assert exported(fleet, online).read_bytes() == theirs.read_bytes()
        for name in [*others, "coordinator"]:
            fleet.stop(name)
        for device in others:
            assert exported(fleet, device).read_bytes() == theirs.read_bytes()
        test = tmp_path / "test.npz"
        score = accuracy(theirs, test)
        assert score > 0.5, "three rounds are enough to be far better than chance"
        assert {accuracy(tmp_path / f"{device}.safetensors", test) for device in fleet.devices} == {score}
