"""``fedbus-agent model``: what is listed and exported, and what is not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from broker.ports import File, Files
from broker.system import system_ports
from edge_agent import identity as identity_module
from edge_agent.cli import main
from edge_agent.exporting import NoModel, export
from edge_agent.kept import Shelf
from edge_agent.ledger import Ledger
from schemas.jobs import JOB_RUNNING
from schemas.models import Layout, Tensor
from schemas.safetensors import metadata, to_safetensors
from tests.edge_agent.federation import JOB, Federation, Model, put
from tests.edge_agent.party import UPDATE_KEY

Capsys = pytest.CaptureFixture[str]
WALL_S = 1_700_000_000.0
FILES = system_ports().files


class Noon:
    """A clock that stands still."""

    def wall_s(self) -> float:
        return WALL_S

    def monotonic_s(self) -> float:
        return 0.0


class Home:
    """A device's directory, filled as the agent does it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.federation = Federation()
        self.identity = self.federation.member()
        FILES.make_dir(directory)
        identity_module.save(FILES, directory, self.identity)
        self.shelf = Shelf(FILES, Noon(), directory)
        self.ledger = Ledger(FILES, directory)

    def model(self, job: str = JOB, version: int = 0) -> Model:
        tensors = [
            Tensor("net.weight", [30, 40], "float32", "trained"),
            Tensor("net.bias", [40], "float32", "frozen"),
            Tensor("steps", [], "int64", "counter"),
        ]
        layout = Layout(job=job, tensors=tensors, aliases={"head.weight": "net.weight"})
        content = random.Random(f"{job} {version}").randbytes(layout.model_bytes)
        return self.federation.model(layout, content, version=version)

    def keep(self, model: Model, *, state: str = "finished", whole: bool = True) -> Path:
        """The file that the version's chunks are in, or belong in."""
        offer = self.federation.offer(model, state=state)
        path = self.shelf.enter(offer, model.manifest)
        put(FILES, self.shelf.part(path), b"".join(model.sealed[: None if whole else 1]))
        if whole:
            self.shelf.finish(path, offer)
        return path

    def run(self, *arguments: str) -> int:
        return main(["model", *arguments, "--dir", str(self.directory)])

    def file(self, model: Model) -> bytes:
        """What an export of the model must be."""
        offer = self.federation.offer(model)
        told = metadata(
            self.federation.id,
            offer.job,
            model.manifest.version,
            model.manifest.model,
            offer.task,
            offer.config,
        )
        return to_safetensors(model.layout, model.content, told)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "device")


def error_line(capsys: Capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def listed(home: Home, capsys: Capsys) -> list[dict[str, Any]]:
    assert home.run("list", "--json") == 0
    views: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return views


def test_the_list_says_of_each_job_what_is_here(home: Home, capsys: Capsys) -> None:
    home.keep(home.model(version=3), state=JOB_RUNNING)
    model = home.model(version=4)
    home.keep(model)
    home.keep(home.model("other", 7), state=JOB_RUNNING)
    last, running = listed(home, capsys)
    assert last == {
        "job": JOB,
        "version": 4,
        "state": "finished",
        "last": True,
        "task": "vision",
        "config": {"hidden": 8},
        "parameters": 1240,
        "bytes": model.layout.model_bytes,
        "model": model.manifest.model.hex(),
        "received": "2023-11-14T22:13:20+00:00",
        "whole": True,
        "problem": "",
    }
    assert (running["job"], running["state"], running["last"]) == ("other", "running", False)
    assert home.run("list") == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in table] == [
        ["job", "version", "state"],
        [JOB, "4", "finished"],
        ["other", "7", "running"],
    ]


def test_without_any_model_the_list_is_empty_and_says_so(home: Home, capsys: Capsys) -> None:
    assert listed(home, capsys) == []
    assert home.run("list") == 0
    assert "no model yet" in capsys.readouterr().out


def test_until_the_last_version_has_come_the_one_before_is_listed_and_exported(
    home: Home, tmp_path: Path, capsys: Capsys
) -> None:
    before = home.model(version=3)
    home.keep(before, state=JOB_RUNNING)
    home.ledger.end(JOB)
    (view,) = listed(home, capsys)
    assert (view["version"], view["state"], view["last"]) == (3, "ended", False)
    home.keep(home.model(version=4), whole=False)
    assert [(view["version"], view["whole"]) for view in listed(home, capsys)] == [(3, True), (4, False)]
    assert home.run("list") == 0
    table = capsys.readouterr().out
    assert "on its way" in table
    assert "finished" not in table, "that is said of a model that is here"
    out = tmp_path / "a.safetensors"
    assert home.run("export", JOB, str(out)) == 0
    assert out.read_bytes() == home.file(before)
    assert "version 3" in capsys.readouterr().out


def test_an_export_is_the_model_to_the_byte_and_says_what_it_is(home: Home, tmp_path: Path) -> None:
    model, out = home.model(version=4), tmp_path / "a.safetensors"
    home.keep(model)
    out.write_bytes(b"what was there before")
    (tmp_path / "a.safetensors.new" / "mine").mkdir(parents=True)
    assert home.run("export", JOB, str(out)) == 0
    assert out.read_bytes() == home.file(model)
    assert (tmp_path / "a.safetensors.new" / "mine").is_dir()
    tensors = load_file(out)
    assert b"".join(tensors[name].tobytes() for name in ("net.weight", "net.bias", "steps")) == model.content
    assert tensors["head.weight"].tobytes() == tensors["net.weight"].tobytes()
    with safe_open(out, framework="np") as file:
        assert file.metadata()["fedbus.version"] == "4"


def test_export_needs_neither_torch_nor_numpy(home: Home, tmp_path: Path) -> None:
    home.keep(home.model())
    out = tmp_path / "a.safetensors"
    code = (
        "import sys; from edge_agent.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(status or bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    arguments = ["model", "export", JOB, str(out), "--dir", str(home.directory)]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, check=False)
    assert (done.returncode, out.exists()) == (0, True)


def test_an_unknown_job_is_refused_naming_those_there_are(home: Home, tmp_path: Path, capsys: Capsys) -> None:
    home.keep(home.model("presses"))
    home.keep(home.model("pumps"))
    assert home.run("export", "press", str(tmp_path / "x")) == 1
    assert "job press: no model of this job here; the models: presses, pumps" in error_line(capsys)


def test_a_model_that_is_not_whole_is_refused_with_the_remedy(
    home: Home, tmp_path: Path, capsys: Capsys
) -> None:
    home.keep(home.model(), whole=False)
    assert home.run("export", JOB, str(tmp_path / "x")) == 1
    assert "not whole yet; let `fedbus-agent run` fetch the rest" in error_line(capsys)


def test_a_target_that_cannot_be_written_is_refused(home: Home, tmp_path: Path, capsys: Capsys) -> None:
    home.keep(home.model())
    assert home.run("export", JOB, str(tmp_path)) == 2
    assert "is a folder" in error_line(capsys)
    assert home.run("export", JOB, str(tmp_path / "none" / "x")) == 1
    assert "no such folder; make it first" in error_line(capsys)


def test_without_a_device_the_commands_say_how_to_enrol(tmp_path: Path, capsys: Capsys) -> None:
    for command in (["list"], ["export", JOB, "x"]):
        assert main(["model", *command, "--dir", str(tmp_path)]) == 1
        assert "no device is enrolled here" in error_line(capsys)


class Replacing:
    """Files of a machine on which the agent replaces the model just when it is opened."""

    def __init__(self, inner: Files, replace: Callable[[], None]) -> None:
        self._inner = inner
        self._replace = replace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, path: Path, *, create: bool = False, mode: int = 0o600) -> File:
        if not create:
            self._replace()
        return self._inner.open(path, create=create, mode=mode)


def test_a_version_that_is_replaced_meanwhile_gives_way_to_the_newer_one(home: Home, tmp_path: Path) -> None:
    home.keep(home.model(version=3), state=JOB_RUNNING)

    def replace() -> None:
        home.keep(home.model(version=4))
        home.shelf.prune(JOB, 1)

    out = tmp_path / "a.safetensors"
    files: Any = Replacing(FILES, replace)
    model, size = export(files, home.directory, home.identity, JOB, out)
    assert (model.version, size) == (4, out.stat().st_size)
    assert out.read_bytes() == home.file(home.model(version=4))


def test_a_job_whose_model_has_not_come_yet_is_told_from_an_unknown_one(home: Home, tmp_path: Path) -> None:
    request = home.federation.request(home.model(), UPDATE_KEY)
    home.ledger.accept(request, 0, 0)
    with pytest.raises(NoModel, match="its model has not come yet; the models: none"):
        export(FILES, home.directory, home.identity, JOB, tmp_path / "x")
