"""docs/jobs.md: every field of a job with its default and bounds, and examples that are jobs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from edge_agent.tasks import Task
from edge_agent.tasks.tabular import TabularConfig, TabularTask
from edge_agent.tasks.vision import VisionConfig, VisionTask
from schemas.jobs import (
    AsyncSettings,
    CompressionSettings,
    EvaluationSettings,
    JobSpec,
    LocalPlan,
    LocalSettings,
    Personal,
    Scaffold,
    ServerSettings,
    parse_job,
)

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    "The job": JobSpec,
    "Local training": LocalPlan,
    "At the server": ServerSettings,
    "Asynchronous jobs": AsyncSettings,
    "Evaluation": EvaluationSettings,
    "Personal layers": Personal,
    "Compression": CompressionSettings,
    "SCAFFOLD": Scaffold,
    "Vision": VisionConfig,
    "Tabular": TabularConfig,
}
TASKS: Final[dict[str, type[Task]]] = {"vision": VisionTask, "tabular": TabularTask}
EXAMPLES: Final = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FIELDS: Final = [
    pytest.param(title, field, id=f"{title}-{field.name}")
    for title, struct in TABLES.items()
    for field in msgspec.structs.fields(struct)
]


def rows(title: str) -> dict[str, list[str]]:
    """The cells of a section's table (type, default, range, text) by field."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    table = section.split("\n| field |")[1].split("\n\n")[0]
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in lines}


def default_in_words(field: msgspec.structs.FieldInfo) -> str:
    """As the page writes it; empty where the task, not the field, knows the default."""
    if field.required:
        return "required"
    default: Any = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    match default:
        case None | msgspec.UNSET:
            return ""
        case LocalSettings():
            return "see [Local training](#local-training)"
        case ServerSettings():
            return "see [At the server](#at-the-server)"
        case CompressionSettings():
            return "see [Compression](#compression)"
        case str():
            return f'`"{default}"`'
    return f"`{default}`"


def bounds(of: msgspec.inspect.Type) -> set[str]:
    """Every bound of a type and of what it is made of."""
    names = ("ge", "gt", "le", "lt", "min_length", "max_length")
    found = {getattr(of, name, None) for name in names}
    parts = list(of.types) if isinstance(of, msgspec.inspect.UnionType) else []
    parts += [of.item_type] if isinstance(of, msgspec.inspect.ListType) else []
    return {f"{bound:g}" if bound < 1 else str(int(bound)) for bound in found if bound is not None}.union(
        *map(bounds, parts)
    )


@pytest.mark.parametrize("title", TABLES)
def test_a_table_names_the_fields_of_its_struct_and_no_others(title: str) -> None:
    assert list(rows(title)) == [field.name for field in msgspec.structs.fields(TABLES[title])]


@pytest.mark.parametrize(("title", "field"), FIELDS)
def test_a_field_stands_on_the_page_with_its_default(title: str, field: msgspec.structs.FieldInfo) -> None:
    kind, default, _, text = rows(title)[field.name]
    assert default == (default_in_words(field) or default)
    assert default
    assert kind
    assert text


@pytest.mark.parametrize(("title", "field"), FIELDS)
def test_a_field_stands_on_the_page_with_its_bounds(title: str, field: msgspec.structs.FieldInfo) -> None:
    written = set(re.findall(r"[0-9.]*[0-9]", rows(title)[field.name][2].replace(",", "")))
    assert bounds(msgspec.inspect.type_info(field.type)) <= written


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_a_job_that_its_task_takes(text: str) -> None:
    spec = parse_job(tomllib.loads(text))
    TASKS[spec.task](spec.config)


def example(name: str) -> dict[str, Any]:
    """The job of this name."""
    return next(job for job in map(tomllib.loads, EXAMPLES) if job["name"] == name)


def test_the_asynchronous_example_sets_every_field_of_its_table() -> None:
    assert set(example("defects-3")["asynchronous"]) == names(AsyncSettings)


def names(struct: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(struct)}


def test_the_full_example_sets_every_field() -> None:
    document = example("defects-2")
    assert set(document) == names(JobSpec) - {"asynchronous", "scaffold"}, "they don't go with all of them"
    assert example("presses")["scaffold"].keys() == names(Scaffold)
    assert set(document["config"]) == names(VisionConfig)
    assert set(document["local"]) == names(LocalPlan)
    assert set(document["server"]) == names(ServerSettings)
    assert set(document["evaluation"]) == names(EvaluationSettings)
    assert set(document["personal"]) == names(Personal)
    assert set(document["compression"]) == names(CompressionSettings)


def test_the_tabular_example_sets_every_field_and_fits_the_file_beside_it(tmp_path: Path) -> None:
    job = parse_job(example("pumps"))
    assert set(job.config) == names(TabularConfig)
    (rows,) = re.findall(r"^```csv\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "pumps.csv").write_text(rows)
    assert TabularTask(job.config).load(tmp_path / "pumps.csv").y.tolist() == [0, 1, 0]
