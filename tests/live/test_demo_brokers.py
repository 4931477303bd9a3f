"""The demonstration on the brokers that operators run: whatever carries the messages, the devices train the
same, and the model is what their updates add up to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Mosquitto, RabbitMQ
from tests.live.demonstration import Demo, assert_every_round_is_there_once, finished
from tests.live.own_broker import at_rabbitmq, mosquitto_beside
from tests.replay.elsewhere import compare

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

DEVICES, ROUNDS = 3, 3
SETTINGS = ("--devices", str(DEVICES), "--rounds", str(ROUNDS), "--seed", "7")
SAME_ACCURACY = (
    0.03  # later rounds add in the order of arrival, which costs last bits, and so a few of 360 images
)

Result = dict[str, Any]


def operate(demo: Demo, *command: str) -> None:
    """What an operator types before the demo."""
    done = demo.run(*command, "--dir", str(demo.directory))
    assert done.returncode == 0, done.stderr


def ran(demo: Demo) -> Result:
    """The demo's result, once all is well that must be on every broker."""
    result, _ = finished(demo.start(*SETTINGS))
    assert_every_round_is_there_once(demo, devices=DEVICES, rounds=ROUNDS)
    replayed = json.loads(demo.run("replay", str(demo.directory), "--json").stdout)
    assert replayed["equal"] is True
    assert replayed["jobs"]["digits"][-1]["computed"] == result["model_digest"]
    assert compare([demo.directory], []) == []
    assert demo.processes() == {}
    assert len(result["round_1_updates"]) == DEVICES
    return result


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with Demo(tmp_path_factory.mktemp("embedded") / "demo") as demo:
        return ran(demo)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo") as demo:
        yield demo


def assert_the_same(result: Result, embedded: Result) -> None:
    assert result["round_1_updates"] == embedded["round_1_updates"]
    assert result["test_digest"] == embedded["test_digest"]
    assert result["accuracy"] > result["local_only_accuracy"]
    assert result["accuracy"] == pytest.approx(embedded["accuracy"], abs=SAME_ACCURACY)


def test_on_mosquitto_as_set_up_by_fedbus(demo: Demo, tmp_path: Path, embedded: Result) -> None:
    url, mosquitto = mosquitto_beside(partial(operate, demo), demo.directory, tmp_path / "mosquitto")
    with mosquitto as broker:
        result = ran(demo)
        assert broker.process.poll() is None, "a broker that is not the demo's is left alone"
    assert (result["broker"], result["device_urls"]) == (url, [url])
    assert_the_same(result, embedded)


@pytest.mark.parametrize("devices", ["amqp", "mqtt"])
def test_on_rabbitmq_as_set_up_by_fedbus(
    devices: str, demo: Demo, tmp_path: Path, rabbitmq: RabbitMQ, embedded: Result
) -> None:
    command = partial(operate, demo)
    url, device_url = at_rabbitmq(command, rabbitmq, tmp_path / "management", devices)
    result = ran(demo)
    assert (result["broker"], result["device_urls"]) == (url, [device_url])
    assert_the_same(result, embedded)


def test_on_a_broker_that_lets_everybody_in(demo: Demo, tmp_path: Path, embedded: Result) -> None:
    with Mosquitto(tmp_path / "mosquitto") as broker:
        result, _ = finished(demo.start("--broker", f"mqtt://127.0.0.1:{broker.port}", *SETTINGS))
    assert result["round_1_updates"] == embedded["round_1_updates"]


def test_a_federation_in_use_is_no_place_for_a_demo(demo: Demo, embedded: Result) -> None:
    used = Path(embedded["dir"])
    (used / "demo.json").rename(used / "demo.json.away")
    try:
        done = demo.run("demo", "--dir", str(used))
    finally:
        (used / "demo.json.away").rename(used / "demo.json")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "holds a federation that is in use" in line
    assert "--broker URL" in line


def test_a_federation_brings_its_own_broker(demo: Demo) -> None:
    operate(demo, "init", "--broker", "mqtt://127.0.0.1:1")
    done = demo.run("demo", "--dir", str(demo.directory), "--broker", "mqtt://127.0.0.1:2")
    assert done.returncode == 2
    assert "leave --broker out" in done.stderr
    assert not (demo.directory / "demo.json").exists()
