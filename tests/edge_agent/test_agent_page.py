"""docs/agent.md: every setting with its variable, default and bounds, an example that holds, all commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from edge_agent.cli import main
from edge_agent.config import FILE, PREFIX, Config, Policy, load
from tests.coordinator.test_jobs_page import bounds
from tests.edge_agent.federation import put
from tests.edge_agent.party import HERE
from tests.sim.machine import SimFiles

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "agent.md").read_text(encoding="utf-8")
TABLES: Final[dict[str, tuple[type[msgspec.Struct], str]]] = {
    "At the top": (Config, PREFIX),
    "Policy": (Policy, f"{PREFIX}POLICY_"),
}
OTHERWISE: Final = {"policy", "data"}  # tables with a section of their own
SETTINGS: Final = [
    pytest.param(title, prefix, field, id=f"{title}-{field.name}")
    for title, (struct, prefix) in TABLES.items()
    for field in msgspec.structs.fields(struct)
    if field.name not in OTHERWISE
]


def rows(title: str) -> dict[str, list[str]]:
    """The cells of a section's table (variable, type, default, range, text) by setting."""
    section = PAGE.split(f"\n### {title}\n")[1].split("\n### ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in lines}


def in_words(default: Any) -> str:
    """As the page writes it, which is as TOML does."""
    match default:
        case bool():
            return f"`{str(default).lower()}`"
        case str():
            return f'`"{default}"`'
    return f"`{default}`"


@pytest.mark.parametrize("title", TABLES)
def test_a_table_names_the_settings_there_are_and_no_others(title: str) -> None:
    struct, _ = TABLES[title]
    there = [field.name for field in msgspec.structs.fields(struct)]
    assert list(rows(title)) == [name for name in there if name not in OTHERWISE]


@pytest.mark.parametrize(("title", "prefix", "field"), SETTINGS)
def test_a_setting_stands_on_the_page_with_its_variable_default_and_bounds(
    title: str, prefix: str, field: msgspec.structs.FieldInfo
) -> None:
    variable, kind, default, allowed, text = rows(title)[field.name]
    assert variable == f"`{prefix}{field.name.upper()}`"
    assert default == in_words(field.default if field.default is not msgspec.NODEFAULT else [])
    written = set(re.findall(r"[0-9.]*[0-9]", allowed.replace(",", "")))
    assert bounds(msgspec.inspect.type_info(field.type)) <= written
    choices = getattr(msgspec.inspect.type_info(field.type), "values", ())
    assert all(f'`"{choice}"`' in allowed for choice in choices)
    assert kind
    assert text


def test_the_example_can_be_used() -> None:
    files = SimFiles()
    (example,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    put(files, HERE / FILE, example.encode())
    config = load(files, HERE, {})
    assert config.policy.tasks == ["vision", "tabular"]
    assert config.data["tabular"] == str(HERE / "pumps.csv")


def test_the_page_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    helped = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert helped
    assert set(helped) == set(re.findall(r"^\| `fedbus-agent (\w+)", PAGE, re.MULTILINE))
