"""Classification of the rows of a CSV file (UTF-8, a header row) by an MLP or a linear model.

Which columns are used and how they are normalised stands in the job, the same for every device: nothing is
derived from a device's own rows. The file is read line by line; four bytes per value are kept.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import torch
from torch import nn

from edge_agent.tasks import Config, LocalSettings, Pace, TaskError, Trained
from edge_agent.tasks import classification as shared
from edge_agent.tasks.records import guess_delimiter, read_table, shown

FLOAT32_MAX: Final = torch.finfo(torch.float32).max
MISSING: Final = frozenset({"", "na", "n/a", "nan", "null"})

ColumnName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
ClassName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | int


class TabularConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a job says about a tabular task. See `ALLOWED` for the same in words."""

    columns: Annotated[list[ColumnName], msgspec.Meta(min_length=1, max_length=4_096)]
    label: ColumnName
    classes: (
        Annotated[int, msgspec.Meta(ge=2, le=65_536)]
        | Annotated[list[ClassName], msgspec.Meta(min_length=2, max_length=4_096)]
    )
    mean: list[float] | None = None
    scale: list[Annotated[float, msgspec.Meta(gt=0)]] | None = None
    missing: Literal["refuse", "mean"] = "refuse"
    delimiter: Literal[",", ";", "\t", "|"] = ","
    hidden: shared.Hidden = None
    held_out: shared.HeldOut = 0.1


ALLOWED: Final = {
    "columns": "a list of 1 to 4096 names from the header row",
    "label": "the name of the column to predict, which is none of columns",
    "classes": "a whole number from 2 to 65536 (labels are 0, 1, …), or a list of 2 to 4096 labels",
    "mean": "a list with one number per column, subtracted from it (default 0)",
    "scale": "a list with one number above 0 per column, by which it is divided (default 1)",
    "missing": '"refuse", or "mean" to put the job\'s mean in place of missing values',
    "delimiter": '"," or ";" or "|" or a tab',
    "hidden": shared.HIDDEN_ALLOWED,
    "held_out": shared.HELD_OUT_ALLOWED,
}


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a file: where it stands, and how its values are normalised."""

    name: str
    at: int
    mean: float
    scale: float


class TabularTask:
    """Cross-entropy classification with SGD. Implements `edge_agent.tasks.Task`."""

    accelerated = True

    def __init__(self, config: Config) -> None:
        self.config = parsed(config)
        classes = self.config.classes
        names = range(classes) if isinstance(classes, int) else classes
        self._classes = {str(name).strip(): at for at, name in enumerate(names)}
        self._numbers = {name: at for at, name in enumerate(names) if isinstance(name, int)}

    @classmethod
    def inspect(cls, path: Path) -> dict[str, float | str]:
        """What the file at ``path`` holds, whatever a job wants of it. Raises `TaskError`."""
        delimiter = guess_delimiter(path)
        header, records = read_table(path, delimiter)
        samples = sum(1 for _ in records)
        return {"samples": float(samples), "columns": shown(*header), "delimiter": delimiter}

    def build(self) -> nn.Module:
        return shared.mlp(len(self.config.columns), self.config.hidden, len(self._classes))

    def load(self, path: Path) -> shared.Samples:
        header, records = read_table(path, self.config.delimiter)
        features, label_at = self._places(path, header)
        x, y = array("f"), array("q")
        for line, fields in records:
            x.extend([self._number(path, line, feature, fields[feature.at]) for feature in features])
            y.append(self._class(path, line, fields[label_at]))
        train, held_out = shared.split(len(y), self.config.held_out)
        return shared.Samples(
            path=path,
            x=torch.frombuffer(x, dtype=torch.float32).view(len(y), len(features)),
            y=torch.frombuffer(y, dtype=torch.int64),
            train=train,
            held_out=held_out,
        )

    def train(self, model: nn.Module, data: shared.Samples, settings: LocalSettings, pace: Pace) -> Trained:
        return shared.train(model, data, settings, pace)

    def evaluate(self, model: nn.Module, data: shared.Samples) -> dict[str, float]:
        return shared.evaluate(model, data)

    def _places(self, path: Path, header: Sequence[str]) -> tuple[list[Feature], int]:
        """Where this file has the job's columns, in the job's order, and its label."""
        config = self.config
        counts = Counter(header)
        for name in (*config.columns, config.label):
            if counts[name] != 1:
                raise TaskError(
                    f"{path}: line 1 has {counts[name] or 'no'} columns named {name!r}, but {shown(*header)}"
                    f"; correct it, or the job's columns, label or delimiter = {config.delimiter!r}"
                )
        mean = config.mean or [0.0] * len(config.columns)
        scale = config.scale or [1.0] * len(config.columns)
        at = {name: place for place, name in enumerate(header)}
        features = [
            Feature(name, at[name], column_mean, column_scale)
            for name, column_mean, column_scale in zip(config.columns, mean, scale, strict=True)
        ]
        return features, at[config.label]

    def _number(self, path: Path, line: int, feature: Feature, text: str) -> float:
        """The normalised value of a field."""
        value = (_decimal(text) - feature.mean) / feature.scale
        if abs(value) <= FLOAT32_MAX:
            return value
        where = f"{path}: line {line}, column {feature.name}:"
        if text.strip().lower() in MISSING:
            if self.config.missing == "mean":
                return 0.0
            raise TaskError(f'{where} the value is missing; fill it in, or set missing = "mean" in the job')
        if math.isnan(value):
            raise TaskError(f"{where} {shown(text)} is not a number; correct it (decimals as in 12.5)")
        raise TaskError(f"{where} {shown(text)} is too large; correct it, or the job's mean and scale")

    def _class(self, path: Path, line: int, text: str) -> int:
        """The number of the class that a field names."""
        name, classes = text.strip(), self.config.classes
        if name in self._classes:
            return self._classes[name]
        number = _decimal(name)  # programs that know only one kind of number write 1.0
        if number in self._numbers:
            return self._numbers[int(number)]
        where = f"{path}: line {line}, column {self.config.label}: label {shown(name)}"
        if not isinstance(classes, int):
            known = shown(*map(str, classes))
            raise TaskError(f"{where} is none of the job's classes ({known}); correct the file or the job")
        raise TaskError(
            f"{where} is no whole number from 0 to {classes - 1}; correct the file or the job's classes"
        )


def _decimal(text: str) -> float:
    """The number that a field holds, in plain ASCII; NaN if it holds none."""
    plain = text.strip()
    try:
        # Python would read 1_0 as 10, and the digits of every script.
        return float(plain) if plain.isascii() and "_" not in plain else math.nan
    except ValueError:
        return math.nan


def parsed(config: Config) -> TabularConfig:
    """The checked configuration. Raises `TaskError` naming key, value and what is allowed."""
    checked = shared.parse("tabular", TabularConfig, ALLOWED, config)
    columns = checked.columns
    names: list[tuple[str, list[str]]] = [("columns", [*columns, checked.label])]
    if isinstance(checked.classes, list):
        names.append(("classes", [str(name).strip() for name in checked.classes]))
    for key, values in names:
        twice, times = Counter(values).most_common(1)[0]
        if times > 1:
            with_label = " or is the label, too" if key == "columns" else ""
            raise TaskError(f"tabular task: {twice!r} stands in {key} twice{with_label}; name it once")
    for key, numbers in (("mean", checked.mean), ("scale", checked.scale)):
        if numbers is None:
            continue
        if len(numbers) != len(columns):
            raise TaskError(
                f"tabular task: {key} has {len(numbers)} numbers for {len(columns)} columns; "
                f"give one per column"
            )
        if not all(map(math.isfinite, numbers)):
            raise TaskError(f"tabular task: {key} = {numbers} is not finite; give finite numbers")
    return checked
