"""The coordinator's settings: what a person wrote stays, what a command sets is found again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.system import system_ports
from coordinator.config import FILE, Config, ConfigError, change_settings, config_text, load_config

FILES = system_ports().files


def loaded(directory: Path, text: str) -> Config:
    (directory / FILE).write_text(text)
    return load_config(FILES, directory, {})


@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_is_read_back_as_it_was_set(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("settings")
    assert loaded(directory, config_text(Config(broker="mqtt://b", username=text))).username == text
    change_settings(FILES, directory, username=text + "\\1", vhost=text)
    changed = load_config(FILES, directory, {})
    assert (changed.username, changed.vhost) == (text + "\\1", text)


def test_a_changed_setting_leaves_everything_else_as_it_was_written(tmp_path: Path) -> None:
    text = '# my own remark\nbroker = "mqtt://b"   # in the cellar\nca   =  "old.pem"\n'
    assert loaded(tmp_path, text).ca == str(tmp_path / "old.pem")
    change_settings(FILES, tmp_path, ca="new.pem", broker_files="broker")
    assert (tmp_path / FILE).read_text() == (
        'broker_files = "broker"\n# my own remark\nbroker = "mqtt://b"   # in the cellar\nca = "new.pem"\n'
    )


def test_paths_are_relative_to_the_state_directory(tmp_path: Path) -> None:
    text = 'broker = "mqtts://b"\nca = "broker/ca.crt"\nkey = "/etc/key.pem"\n'
    config = loaded(tmp_path, text)
    assert (config.ca, config.key, config.certificate) == (
        str(tmp_path / "broker" / "ca.crt"),
        "/etc/key.pem",
        "",
    )


def test_the_environment_comes_first(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('broker = "mqtt://b"\n')
    environment = {"FEDBUS_COORDINATOR_BROKER_PID_FILE": "/run/pid", "FEDBUS_COORDINATOR_DIR": "elsewhere"}
    assert load_config(FILES, tmp_path, environment).broker_pid_file == "/run/pid"


def test_two_ways_to_tell_the_broker_of_its_users_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clear one of them"):
        loaded(tmp_path, 'broker = "mqtt://b"\nbroker_files = "broker"\nmanagement = "http://b:1"\n')
