"""``journal export --rekey``: the same history, of nobody in particular."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from broker.system import system_ports
from coordinator import facts as f
from coordinator import inputs as i
from coordinator.cli.main import main
from coordinator.config import Config, load_config
from coordinator.facts import AnyFact
from coordinator.keystore import load_identity
from coordinator.rekey import ExportRefused
from coordinator.rekey.export import export
from coordinator.rekey.names import WORDS
from coordinator.rekey.translate import KEPT, RULES
from coordinator.rekey.updates import Content
from coordinator.replay import replay
from coordinator.verify import verify
from edge_agent.tasks.tabular import TabularConfig
from edge_agent.tasks.vision import VisionConfig
from schemas import events as e
from schemas.jobs import EvaluationSettings, JobSpec
from tests.coordinator.serving import answer, served
from tests.replay import history
from tests.replay.history import record, unsynced
from tests.replay.leaks import drawn, leaks, readable

Capsys = pytest.CaptureFixture[str]
CONFIG: Final = Config(broker="embedded:20123")
# None is so short that it could come about by chance.
SECRET_TEXTS: Final = (
    *history.DEVICES,
    *history.TEXTS,
    *(history.ENTITY, history.JOB, history.DATASET, history.BROKEN, history.BROKER, history.USER),
    *(history.AGENT, history.IDLE, "rolls-turned", "back-yard"),
    *(history.PASSWORD_TEXT, "standin", "smelting", "unheard-of"),
)
CHUNKED: Final = 3_000  # parameters: three chunks of the smallest size


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return record(tmp_path / "home")


def exported(home: Path, content: Content = Content.KEEP) -> Path:
    target = home.with_name("told")
    export(unsynced(), home, target, CONFIG, content)
    return target


def damage(home: Path) -> list[str]:
    files = system_ports().files
    return [str(one) for one in verify(files, home, load_identity(files, home).federation).damage]


def digests(home: Path) -> list[list[str]]:
    """Of every job's versions, computed again."""
    result = replay(unsynced(), home)
    return [[version["computed"] for version in versions] for versions in result["jobs"].values()]


@pytest.mark.parametrize("count", [history.COUNT, CHUNKED])
def test_an_export_verifies_and_replays_to_the_same_digests(tmp_path: Path, count: int) -> None:
    home = record(tmp_path / "home", count)
    told = exported(home)
    assert damage(told) == []
    assert replay(unsynced(), told)["equal"]
    assert digests(told) == digests(home)


@pytest.mark.parametrize("content", Content)
def test_nothing_of_the_source_occurs_in_any_byte_of_an_export(home: Path, content: Content) -> None:
    files = system_ports().files
    needles = drawn(files, home) | {text.encode() for text in SECRET_TEXTS}
    assert len(needles) > 500
    assert leaks(needles, readable(files, home)), "a search that finds nothing in the source finds nothing"
    assert leaks(needles, readable(files, exported(home, content))) == []


@pytest.mark.parametrize("content", [Content.TRUNCATE, Content.DROP])
def test_content_is_cut_or_left_out_and_the_rest_still_verifies(tmp_path: Path, content: Content) -> None:
    home = record(tmp_path / "home", CHUNKED)
    told = exported(home, content)
    assert damage(told) == []
    sizes = [path.stat().st_size for path in (told / "bodies").iterdir()]
    assert len(sizes) == len(list((home / "bodies").iterdir()))
    assert max(sizes) < 3_000 < 4 * CHUNKED
    result = replay(unsynced(), told)
    assert "length: " in result["difference"]["problems"][0]


def test_an_update_whose_key_was_destroyed_stays_unreadable(home: Path) -> None:
    (home / "keys" / "requests" / history.JOB / "000001.keys").unlink()
    told = exported(home)
    assert damage(told) == []
    assert replay(unsynced(), told)["difference"]["version"] == 1


def test_devices_are_numbered_in_the_order_of_joining_and_keep_their_keys_for_a_player(home: Path) -> None:
    told = exported(home)
    names = sorted(path.name for path in (told / "devices").iterdir())
    assert names == ["device-1", "device-2", "device-3"]
    assert sorted(path.name for path in (told / "devices" / "device-3").iterdir()) == [
        "identity",
        "identity.1",
        "sequence",
    ]


def test_an_export_is_refused_where_it_could_harm_or_mislead(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "told"
    target.mkdir()
    with pytest.raises(ExportRefused, match="told exists already"):
        exported(home)
    target.rmdir()
    (tmp_path / "told.new").mkdir()
    with pytest.raises(ExportRefused, match=r"told\.new exists already"):
        exported(home)
    (tmp_path / "told.new").rmdir()
    body = next((home / "bodies").iterdir())
    body.write_bytes(body.read_bytes()[:-1])
    with pytest.raises(ExportRefused, match="nothing is exported of what is damaged"):
        exported(home)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_an_export_that_fails_leaves_nothing(home: Path, tmp_path: Path) -> None:
    (model,) = (home / "models" / history.IDLE).glob("*.model")
    model.unlink()
    with pytest.raises(FileNotFoundError):
        exported(home)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def kinds(*unions: Any) -> set[type[msgspec.Struct]]:
    return {kind for union in unions for kind in union.__args__}


@pytest.mark.parametrize(
    "kind",
    sorted(
        kinds(AnyFact, i.Recorded, e.FromDevice, e.FromCoordinator)
        | {f.IssuedRequest, e.RequestRef, e.Vector, JobSpec, EvaluationSettings},
        key=str,
    ),
    ids=lambda kind: kind.__name__,
)
def test_every_field_of_a_recording_is_kept_or_changed_by_a_rule(kind: type[msgspec.Struct]) -> None:
    if kind is not i.JoinAsked:
        known = KEPT | RULES.keys()
        assert [n for n in kind.__struct_fields__ if not {n, f"{kind.__name__}.{n}"} & known] == []


def test_settings_of_the_tasks_that_come_with_fedbus_stay() -> None:
    assert set(TabularConfig.__struct_fields__) | set(VisionConfig.__struct_fields__) <= WORDS


def test_on_the_command_line(home: Path, tmp_path: Path, capsys: Capsys) -> None:
    target = tmp_path / "told"
    arguments = ["journal", "export", str(target), "--dir", str(home)]
    assert main(arguments) == 2
    assert "--rekey" in capsys.readouterr().err
    assert main([*arguments, "--rekey", "--bodies", "some"]) == 2
    assert "one of keep, truncate, drop" in capsys.readouterr().err
    assert main([*arguments, "--rekey", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dir"], told["devices"], told["bodies"]) == (str(target), 3, "keep")
    assert main(["journal", "verify", "--dir", str(target)]) == 0
    assert main(["replay", str(target)]) == 0
    assert load_config(system_ports().files, target, {}).broker.startswith("embedded:")
    capsys.readouterr()
    assert main([*arguments, "--rekey"]) == 1
    assert "exists already" in capsys.readouterr().err


async def test_a_coordinator_may_serve_meanwhile(tmp_path: Path, capsys: Capsys) -> None:
    async with served(tmp_path / "home") as fed:
        await fed.device("press-07")
        text = await answer(fed, capsys, "journal", "export", "--rekey", str(tmp_path / "told"))
    assert "1 devices, 0 updates" in text
    assert damage(tmp_path / "told") == []
