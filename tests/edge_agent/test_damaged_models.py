"""A kept model that is damaged: what it does not disturb, and the remedy that is told, tried."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.exporting import NoModel, export, kept
from edge_agent.kept import CARD
from schemas.jobs import JOB_RUNNING
from tests.edge_agent.federation import JOB, Federation, put
from tests.edge_agent.party import HERE, Party, eventually
from tests.edge_agent.test_agent_models import content, last_of, trained
from tests.edge_agent.test_exporting import Capsys, Home, error_line, listed
from tests.sim.virtual_loop import run


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "device")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def damage_chunk(home: Home, path: Path) -> str:
    flip(path, 4_500)
    return "chunk 1 is not the one that was signed"


def cut_short(home: Home, path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1])
    return "chunk 1 is not the one that was signed"


def damage_card(home: Home, path: Path) -> str:
    flip(path.with_name(path.name + ".card"), 600)
    return "can't be used"


def substitute(home: Home, path: Path) -> str:
    """Another federation's model, with cards that hold together."""
    other = Home(home.directory.parent / "other")
    other.federation = Federation(seed=1)
    other.keep(other.model())
    for file in path.parent.iterdir():
        file.unlink()
    for file in (other.directory / "models").iterdir():
        file.rename(path.parent / file.name)
    return "can't be used"


@pytest.mark.parametrize("spoil", [damage_chunk, cut_short, damage_card, substitute])
def test_a_model_that_does_not_hold_is_not_exported_and_the_error_says_what_to_do(
    spoil: Callable[[Home, Path], str], home: Home, tmp_path: Path, capsys: Capsys
) -> None:
    path = home.keep(home.model())
    expected = spoil(home, path)
    out = tmp_path / "a.safetensors"
    assert home.run("export", JOB, str(out)) == 1
    line = error_line(capsys)
    assert expected in line
    assert f"delete {path.parent}" in line
    assert not out.exists()


def test_a_damaged_card_keeps_no_other_job_from_being_listed_and_exported(
    home: Home, tmp_path: Path, capsys: Capsys
) -> None:
    damage_card(home, home.keep(home.model("presses", 3)))
    pumps = home.model("pumps", 4)
    home.keep(pumps)
    bad, good = listed(home, capsys)
    assert (bad["job"], bad["version"], bad["state"], bad["whole"]) == ("presses", 3, "damaged", True)
    assert "can't be used" in bad["problem"]
    assert (good["job"], good["state"], good["problem"]) == ("pumps", "finished", "")
    assert home.run("list") == 0
    head, first, second, problem = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in (head, first, second)] == [
        ["job", "version", "state"],
        ["presses", "3", "damaged"],
        ["pumps", "4", "finished"],
    ]
    assert problem == bad["problem"]
    out = tmp_path / "a.safetensors"
    assert home.run("export", "pumps", str(out)) == 0
    assert out.read_bytes() == home.file(pumps)


def test_of_a_job_with_one_damaged_card_another_whole_version_is_exported(
    home: Home, tmp_path: Path, capsys: Capsys
) -> None:
    before = home.model(version=3)
    home.keep(before, state=JOB_RUNNING)
    damage_card(home, home.keep(home.model(version=4)))
    assert [(view["version"], view["state"]) for view in listed(home, capsys)] == [
        (3, "running"),
        (4, "damaged"),
    ]
    out = tmp_path / "a.safetensors"
    assert home.run("export", JOB, str(out)) == 0
    assert out.read_bytes() == home.file(before)
    capsys.readouterr()
    home.keep(home.model(version=5))
    assert [view["version"] for view in listed(home, capsys)] == [5]


@pytest.mark.parametrize("spoilt", ["card", "card's first byte", "model"])
def test_doing_what_is_said_of_a_damaged_model_brings_it_back(spoilt: str) -> None:
    async def play() -> None:
        party = Party()
        files, out = party.machine.files, Path("/out")
        async with party.coordinator() as coordinator:
            async with party.device():
                await trained(party, coordinator)
                await coordinator.end(last_of(party))
                await eventually(lambda: party.models() == [(JOB, 1)])
            (model,), _ = kept(files, HERE, party.identity)
            path = model.path if spoilt == "model" else model.path.with_name(model.path.name + CARD)
            bad = bytearray(files.read(path))
            bad[0 if spoilt == "card's first byte" else 600] ^= 1
            put(files, path, bytes(bad))
            with pytest.raises(NoModel, match="then start the agent again") as refused:
                export(files, HERE, party.identity, JOB, out)
            named = re.findall(rf"{HERE}/models/[^\s,:;]+", str(refused.value).partition("delete ")[2])
            assert str(path) in named
            for name in named:
                files.remove(Path(name))
            async with party.device():
                await eventually(lambda: party.models() == [(JOB, 1)])
            assert content(party) == last_of(party).content
            assert export(files, HERE, party.identity, JOB, out)[0].version == 1

    run(play)
