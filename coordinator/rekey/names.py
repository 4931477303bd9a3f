"""Words that tell nothing in place of those that a recording holds: names, settings, and what somebody wrote.

What fedbus itself says stays as it is: its tasks with their settings, its reasons, its codes.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

from schemas.errors import WireError
from schemas.events import DECLINE_REASONS
from schemas.jobs import TaskConfig

LEFT_OUT: Final = "left out"
WORDS: Final = frozenset(
    {"tabular", "vision", "loss", "accuracy", "delta"}
    | {"columns", "label", "classes", "mean", "scale", "missing", "delimiter", "hidden", "held_out"}
    | {"lora_alpha", "lora_rank", "model", "shape", "mlp", "cnn", "refuse", ",", ";", "\t", "|"}
)
"""Of the tasks that come with fedbus: their names, settings, values and measures."""
CODES: Final = frozenset(
    {*DECLINE_REASONS, *(error.code for error in WireError.__subclasses__())}
    | {"wire", "closed", "job", "base", "layout", "length", "type", "finite", "late", "norm", "samples"}
)
_N: Final = "[0-9.e+-]+"
_OURS: Final = re.compile(
    "the device was revoked|(late: )?the job was (finished|cancelled|failed)|cancelled by the operator"
    "|the cohort has reported|everybody asked has answered|the deadline has passed"
    f"|target reached: version {_N} scores {_N}, of {_N}"
    f"|stopped early: no better than version {_N} in {_N} evaluations"
    f"|{_N} rounds|late: round {_N} was closed|length: {_N} bytes where {_N} belong"
    f"|norm: {_N} exceeds the job's update_norm_max {_N}"
    f"|samples: {_N} exceed the job's samples_max {_N}"
    f"|finite: the update holds NaN, infinity or numbers beyond {_N}"
)
_BUILD: Final = re.compile(r"fedbus [0-9][0-9.]*")


class Names:
    """Gives every name another one, the same each time: ``device-1``, ``job-1``, … in the order of asking."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], str] = {}
        self._counts: Counter[str] = Counter()

    def of(self, kind: str, name: str) -> str:
        """In place of ``name``, which is a ``kind`` ("device", "job", …). None is none."""
        if not name:
            return ""
        if (kind, name) not in self._given:
            self._counts[kind] += 1
            self._given[kind, name] = f"{kind}-{self._counts[kind]}"
        return self._given[kind, name]

    def word(self, kind: str, word: str) -> str:
        """As `of`, but the words of the tasks that come with fedbus stay."""
        return word if word in WORDS else self.of(kind, word)

    def measures(self, values: dict[str, float]) -> dict[str, float]:
        """What a device measured."""
        return {self.word("measure", name): value for name, value in values.items()}

    def settings(self, config: TaskConfig) -> TaskConfig:
        """A task's; numbers stay."""
        return {self.word("setting", name): self._setting(value) for name, value in config.items()}

    def _setting(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._setting(one) for one in value]
        return self.word("text", value) if isinstance(value, str) else value


def code(text: str) -> str:
    """A reason or code that fedbus knows."""
    return text if not text or text in CODES else "other"


def reason(text: str) -> str:
    """Why something was decided: whole if it is fedbus' own sentence, otherwise what kind of reason it is."""
    if not text or _OURS.fullmatch(text):
        return text
    kind = text.partition(":")[0]
    return kind if kind in CODES else LEFT_OUT


def free(text: str) -> str:
    """What an operator, a device or a program elsewhere wrote."""
    return LEFT_OUT if text else ""


def build(text: str) -> str:
    """Which agent a device runs, if it is one of ours."""
    return text if _BUILD.fullmatch(text) else ""
