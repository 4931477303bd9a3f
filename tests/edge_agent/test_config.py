"""The owner's settings: defaults that allow nothing, and errors that name the place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.bus import Tls
from edge_agent.config import Config, ConfigError, Policy, keep, load
from edge_agent.presence import credentials
from tests.edge_agent.federation import Federation, put
from tests.edge_agent.party import HERE
from tests.sim.machine import SimFiles


def loaded(text: str, environ: Mapping[str, str] | None = None) -> Config:
    files = SimFiles()
    put(files, HERE / "agent.toml", text.encode())
    return load(files, HERE, environ or {})


def test_without_a_file_no_task_is_allowed() -> None:
    files = SimFiles()
    assert load(files, HERE, {}) == Config()
    assert Config().policy.tasks == []


def test_the_file_says_what_is_allowed_and_where_data_are() -> None:
    config = loaded(
        'broker = "mqtt://b:1883"\nworker_idle_s = 5\n[policy]\ntasks = ["vision"]\ncpu_share = 0.5\n'
        '[data]\nvision = "mine.npz"\nother = "/data/other.npz"\n'
    )
    assert config == Config(
        broker="mqtt://b:1883",
        worker_idle_s=5.0,
        policy=Policy(tasks=["vision"], cpu_share=0.5),
        data={"vision": str(HERE / "mine.npz"), "other": "/data/other.npz"},
    )


def test_the_environment_comes_first() -> None:
    environ = {
        "FEDBUS_BROKER": "mqtt://other",
        "FEDBUS_WORKER_IDLE_S": "7.5",
        "FEDBUS_POLICY_TASKS": "vision, tabular",
        "FEDBUS_POLICY_TRAIN_ON_BATTERY": "true",
        "FEDBUS_POLICY_THREADS": "3",
    }
    config = loaded('broker = "mqtt://b"\n', environ)
    assert (config.broker, config.worker_idle_s) == ("mqtt://other", 7.5)
    assert config.policy == Policy(tasks=["vision", "tabular"], train_on_battery=True, threads=3)


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        (
            "brokers = 1",
            {},
            ["agent.toml: brokers", "broker, ca, certificate, key, worker_idle_s", "policy, data"],
        ),
        ("[policy]\ntask = []", {}, ["policy.task is not", "tasks, power"]),
        ("[policy]\ncpu_share = 0", {}, ["agent.toml", "$.policy.cpu_share"]),
        ("[policy]\npower = 'sun'", {}, ["$.policy.power", "sun"]),
        ("policy = 1", {}, ["policy must be a table"]),
        ("[data]\nvision = 1", {}, ["$.data[...]"]),
        ("x = = 1", {}, ["agent.toml: not TOML", "line 1"]),
        ("", {"FEDBUS_POLICY_THREADS": "many"}, ["FEDBUS_POLICY_THREADS='many'"]),
        ("", {"FEDBUS_POLICY_CPU_SHARE": "2"}, ["FEDBUS_POLICY_CPU_SHARE='2'"]),
    ],
)
def test_what_can_not_be_used_is_named(text: str, environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(text, environ)
    for word in words:
        assert word in str(refused.value)


def test_the_files_that_enrolment_kept_are_used_until_others_are_named() -> None:
    files = SimFiles()
    put(files, HERE / "agent.toml", b'ca = "other.pem"\n')
    keep(files, HERE, {"ca": b"", "certificate": b"own", "key": b"secret"})
    config = load(files, HERE, {"FEDBUS_KEY": "/etc/key.pem"})
    wanted = str(HERE / "other.pem"), str(HERE / "client.crt"), "/etc/key.pem"
    assert (config.ca, config.certificate, config.key) == wanted


def test_a_device_trusts_the_authority_of_its_token_or_of_its_owner() -> None:
    files, own = SimFiles(), replace(Federation().member(), ca="from the token")
    assert credentials(own, Config(), files).tls == Tls(ca="from the token")
    put(files, HERE / "ca.pem", b"from the owner")
    mine = Config(ca=str(HERE / "ca.pem"), certificate="/own.crt", key="/own.key")
    assert credentials(own, mine, files).tls == Tls("from the owner", Path("/own.crt"), Path("/own.key"))
    with pytest.raises(ConfigError, match=r"setting ca: .*gone\.pem.*name the PEM file"):
        credentials(own, Config(ca=str(HERE / "gone.pem")), files)
