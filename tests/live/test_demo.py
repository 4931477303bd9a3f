"""The demonstration with real processes: run through, killed in parts, killed as a whole."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.live.demonstration import DEADLINE_S, Demo, assert_every_round_is_there_once, finished, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo") as demo:
        yield demo


def test_a_demo_ends_with_a_model_that_can_be_replayed_exported_and_shown(demo: Demo) -> None:
    result, _ = finished(demo.start("--devices", "3", "--rounds", "3", "--seed", "7"))

    assert (result["rounds"], result["devices"], result["dir"]) == (3, 3, str(demo.directory))
    assert result["accuracy"] > result["local_only_accuracy"]
    assert result["accuracy"] == result["accuracy_per_round"][3]
    assert 0 < result["centralised_accuracy"] <= 1
    assert len(result["round_s"]) == len(result["round_overhead_s"]) == 3
    parameters_bytes = 4 * 4_810
    assert 9 * parameters_bytes < result["bytes_up"] < 12 * parameters_bytes
    assert 9 * parameters_bytes < result["bytes_down"] < 18 * parameters_bytes
    assert demo.processes() == {}
    assert (demo.directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    report = (demo.directory / "report.html").read_text()
    assert f"{result['accuracy']:.3f}" in report
    assert result["model_digest"] in report
    assert result["broker"].startswith("embedded:")
    assert sorted(result["round_1_updates"]) == ["device-1", "device-2", "device-3"]

    replayed = demo.run("replay", str(demo.directory), "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["equal"] is True
    place = ("--dir", str(demo.directory))
    shown = json.loads(demo.run("jobs", "show", "digits", "--json", *place).stdout)
    assert shown["model"] == result["model_digest"]
    first = demo.directory / "first.safetensors"
    assert demo.run("models", "export", "digits", str(first), "--version", "0", *place).returncode == 0
    tensors = load_file(demo.directory / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == 4_810
    assert first.read_bytes() != (demo.directory / "model.safetensors").read_bytes()

    again = demo.run("demo", "--json", "--dir", str(demo.directory))
    assert json.loads(again.stdout) == result
    assert "finished" in again.stderr


def test_a_demo_survives_the_kill_of_its_coordinator_and_of_an_agent(demo: Demo) -> None:
    process = demo.start("--devices", "2", "--rounds", "8")
    wait_until(lambda: demo.rounds_done() >= 1, process)
    os.kill(int((demo.directory / "lock").read_text()), signal.SIGKILL)
    wait_until(lambda: demo.rounds_done() >= 2, process)
    os.kill(int((demo.directory / "devices" / "device-1" / "lock").read_text()), signal.SIGKILL)

    result, err = finished(process)
    assert result["rounds"] == 8
    assert "coordinator was ended by SIGKILL; it is started again" in err
    assert "device-1 was ended by SIGKILL; it is started again" in err
    assert_every_round_is_there_once(demo, devices=2, rounds=8)
    assert demo.processes() == {}


def test_a_killed_demo_takes_its_processes_along_and_goes_on_when_run_again(demo: Demo) -> None:
    process = demo.start("--devices", "2", "--rounds", "6")
    wait_until(lambda: demo.rounds_done() >= 1, process)
    process.kill()
    process.communicate()
    wait_until(lambda: demo.processes() == {})

    result, err = finished(demo.start())
    assert result["resumed"] is True
    assert "enrolled" not in err
    assert_every_round_is_there_once(demo, devices=2, rounds=6)
    assert demo.processes() == {}


def test_a_stopped_demo_says_how_to_go_on_and_leaves_nothing_running(demo: Demo) -> None:
    process = demo.start("--devices", "2", "--rounds", "1000")
    wait_until(lambda: demo.rounds_done() >= 0, process)
    process.terminate()
    out, err = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("fedbus-coordinator: stopped; the same command goes on")
    assert demo.processes() == {}
