"""The tabular task: columns and normalisation as the job says, errors that name line, column and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.tasks import LocalSettings, TaskError
from edge_agent.tasks.records import DELIMITERS, LINE_CHARS_MAX, read_table
from edge_agent.tasks.tabular import TabularTask
from schemas.jobs import TaskConfig
from tests.edge_agent.training import bits, built, no_pace

CONFIG: TaskConfig = {"columns": ["b", "a"], "label": "kind", "classes": 3}
TABLE = "a,kind,b,comment\n1,0,2.5,x\n3,2,-4e0,y\n5, 1.0 ,6,z\n"


def write(folder: Path, text: str | bytes = TABLE) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_jobs_columns_are_read_in_the_jobs_order_and_others_are_ignored(tmp_path: Path) -> None:
    data = TabularTask(CONFIG).load(write(tmp_path))
    x, y = data.batch(torch.arange(3))
    assert torch.equal(x, torch.tensor([[2.5, 1], [-4, 3], [6, 5]]))
    assert y.tolist() == [0, 2, 1]


def test_values_are_normalised_by_the_job_alone(tmp_path: Path) -> None:
    task = TabularTask({**CONFIG, "mean": [0.5, 1], "scale": [2, 4]})
    x, _ = task.load(write(tmp_path)).batch(torch.arange(3))
    assert torch.equal(x, torch.tensor([[1, 0], [-2.25, 0.5], [2.75, 1]]))


@pytest.mark.parametrize(
    ("text", "change"),
    [
        (TABLE.replace(",", ";"), {"delimiter": ";"}),
        (TABLE.replace(",", "\t"), {"delimiter": "\t"}),
        ("\ufeff" + TABLE.replace("\n", "\r\n"), {}),
        (TABLE.replace("kind", ' "kind"').replace("a,", " a ,", 1).replace(' "', '"'), {}),
        (TABLE.replace("\n", "\n\n").replace("x", '"x, and ""more""\nof it"'), {}),
        (
            TABLE.replace(",0,", ",red,").replace(",2,", ",blue,").replace(" 1.0 ", " 7"),
            {"classes": ["red", 7, "blue"]},
        ),
        (TABLE.replace(",0,", ",0.0,"), {"classes": [0, 1, 2]}),
    ],
)
def test_the_ways_to_write_the_same_table_give_the_same_samples(
    tmp_path: Path, text: str, change: dict[str, Any]
) -> None:
    expected = TabularTask(CONFIG).load(write(tmp_path))
    data = TabularTask({**CONFIG, **change}).load(write(tmp_path, text))
    assert torch.equal(data.x, expected.x)
    assert torch.equal(data.y, expected.y)


@pytest.mark.parametrize("missing", ["", " ", "NA", "nan", "NULL"])
def test_missing_values_are_refused_or_replaced_by_the_jobs_mean(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path, TABLE.replace("2.5", missing))
    config: TaskConfig = {**CONFIG, "mean": [3.5, 0]}
    with pytest.raises(TaskError, match=r'line 2, column b: the value is missing; .* missing = "mean"'):
        TabularTask(config).load(path)
    x, _ = TabularTask({**config, "missing": "mean"}).load(path).batch(torch.arange(3))
    assert x[:, 0].tolist() == [0, -7.5, 2.5]


def no_file(folder: Path) -> Path:
    return folder / "table.csv"


def a_folder(folder: Path) -> Path:
    (folder / "table.csv").mkdir()
    return folder / "table.csv"


def text(content: str | bytes) -> Callable[[Path], Path]:
    return lambda folder: write(folder, content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_file, "no such file; correct the path"),
        (a_folder, "cannot be read: Is a directory"),
        (text(""), "is empty; write a header row"),
        (text("a,kind,b\n\n"), "holds no rows below its header"),
        (text("a,kind,c\n1,0,2\n"), "line 1 has no columns named 'b', but 'a', 'kind', 'c'; correct it"),
        (text(TABLE.replace(",", ";")), "no columns named 'b', but 'a;kind;b;comment'; .* delimiter = ','"),
        (text(TABLE.replace("comment", "b")), "line 1 has 2 columns named 'b'"),
        (text(TABLE + "7,0,8\n"), "line 5 has 3 fields, the header 4; repair that line"),
        (text(TABLE.replace("-4e0", "many")), "line 3, column b: 'many' is not a number; correct it"),
        (
            text(TABLE.replace("-4e0", '"1,5"')),
            r"line 3, column b: '1,5' is not a number.*\(decimals as in 12.5\)",
        ),
        (text(TABLE.replace("-4e0", "y" * 999)), f"'{'y' * 40}…' is not a number"),
        (text(TABLE.replace("-4e0", "1_0")), "line 3, column b: '1_0' is not a number; correct it"),
        (text(TABLE.replace("-4e0", "١٢")), "line 3, column b: '١٢' is not a number; correct it"),
        (
            text(TABLE.replace(" 1.0 ", "0_1")),
            "line 4, column kind: label '0_1' is no whole number from 0 to 2",
        ),
        (text(TABLE.replace(" 1.0 ", "٢")), "line 4, column kind: label '٢' is no whole number from 0 to 2"),
        (text(TABLE.replace("-4e0", "1e39")), "line 3, column b: '1e39' is too large"),
        (text(TABLE.replace("-4e0", "-inf")), "line 3, column b: '-inf' is too large"),
        (text(TABLE.replace(" 1.0 ", "3")), "line 4, column kind: label '3' is no whole number from 0 to 2"),
        (text(TABLE.replace(" 1.0 ", "0.5")), "label '0.5' is no whole number from 0 to 2"),
        (text(TABLE.replace(" 1.0 ", "nan")), "label 'nan' is no whole number from 0 to 2"),
        (text(TABLE.replace(" 1.0 ", "")), "label '' is no whole number"),
        (text(TABLE.replace("y", '"y"z')), r"line 3 is not CSV \(.*expected after"),
        (text(TABLE.replace("y", '"y')), "line 4 is not CSV .*unexpected end of data.*double quotes"),
        (text(TABLE.encode() + b"7,0,8,\xe9t\xe9\n"), "line 5 is not UTF-8; save the file in that encoding"),
        (text("a" * LINE_CHARS_MAX), f"line 1 has more than {LINE_CHARS_MAX} characters"),
        (text(b"\x80\x02" * 9), "line 1 is not UTF-8"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_naming_the_place(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    with pytest.raises(TaskError, match=words) as refused:
        TabularTask(CONFIG).load(make(tmp_path))
    assert str(refused.value).startswith(f"{tmp_path / 'table.csv'}: ")


def test_a_label_that_is_none_of_the_jobs_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"line 2, column kind: label '0' is none of .* \('red', 'blue'\)"):
        TabularTask({**CONFIG, "classes": ["red", "blue"]}).load(write(tmp_path))


@pytest.mark.parametrize("classes", [["0", "1", "2"], [0, 3, 2]])
def test_a_label_that_is_none_of_the_jobs_whole_numbers_is_refused(
    tmp_path: Path, classes: list[str | int | float]
) -> None:
    with pytest.raises(TaskError, match=r"line 4, column kind: label '1.0' is none of the job's classes"):
        TabularTask({**CONFIG, "classes": classes}).load(write(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "tabular task: unknown key colour = 1; the keys are columns, label"),
        ({"columns": []}, r"columns = \[\] is not allowed; give a list of 1 to 4096 names"),
        ({"columns": ["a", "b", "a"]}, "'a' stands in columns twice or is the label, too"),
        ({"columns": ["a", "kind"]}, "'kind' stands in columns twice or is the label, too"),
        ({"classes": 1}, "classes = 1 is not allowed; give a whole number from 2"),
        ({"classes": ["red", "red"]}, "'red' stands in classes twice; name it once"),
        ({"mean": [1]}, "mean has 1 numbers for 2 columns; give one per column"),
        ({"scale": [1, 0]}, r"scale = \[1, 0\] is not allowed; give a list with one number above 0"),
        ({"mean": [1, math.nan]}, r"mean = \[1.0, nan\] is not finite"),
        ({"missing": "drop"}, 'missing = \'drop\' is not allowed; give "refuse", or "mean"'),
        ({"delimiter": '"'}, "delimiter = '\"' is not allowed"),
        ({"held_out": 1.0}, "held_out = 1.0 is not allowed"),
    ],
)
def test_a_bad_configuration_names_key_value_and_what_is_allowed(change: TaskConfig, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        TabularTask({**CONFIG, **change})


@pytest.mark.parametrize("key", ["columns", "label", "classes"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(TaskError, match=f"tabular task: {key} is missing; give"):
        TabularTask({name: value for name, value in CONFIG.items() if name != key})


def test_a_model_has_an_input_per_column_and_an_output_per_class() -> None:
    linear = built(TabularTask({**CONFIG, "classes": ["red", "blue"], "hidden": []}))
    assert [tuple(parameter.shape) for parameter in linear.parameters()] == [(2, 2), (2,)]
    assert linear(torch.zeros(5, 2)).shape == (5, 2)
    assert sum(p.numel() for p in built(TabularTask(CONFIG)).parameters()) == 2 * 64 + 64 + 64 * 3 + 3


def test_equal_seeds_give_equal_bits_and_training_learns(tmp_path: Path) -> None:
    rows = "".join(f"{i % 7},{int(i % 7 > 3)},{i % 5}\n" for i in range(200))
    path = write(tmp_path, "a,kind,b\n" + rows)
    task = TabularTask({**CONFIG, "classes": 2, "hidden": [], "mean": [2, 3], "scale": [1, 2]})

    def trained() -> tuple[bytes, float]:
        model, data = built(task), task.load(path)
        task.train(model, data, LocalSettings(epochs=10, batch_size=8, learning_rate=0.5), no_pace)
        return bits(model), task.evaluate(model, data)["accuracy"]

    assert trained() == trained()
    assert trained()[1] == 1


def test_inspect_tells_what_a_file_holds_without_a_job(tmp_path: Path) -> None:
    path = write(tmp_path, TABLE.replace(",", ";"))
    assert TabularTask.inspect(path) == {
        "samples": 3,
        "columns": "'a', 'kind', 'b', 'comment'",
        "delimiter": ";",
    }
    with pytest.raises(TaskError, match="line 5 has 1 fields, the header 4"):
        TabularTask.inspect(write(tmp_path, TABLE + "cut off\n"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), delimiter=st.sampled_from(DELIMITERS))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path: Path, content: bytes, delimiter: str) -> None:
    path = write(tmp_path, content)
    try:
        header, records = read_table(path, delimiter)
        assert {len(fields) for _, fields in records} == {len(header)}
    except TaskError as refused:
        assert str(path) in str(refused)  # noqa: PT017
