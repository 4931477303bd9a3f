"""docs/protocol.md says what the code does: vectors, fields, limits, codes, and the tests that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from schemas import errors, events, limits
from schemas.keys import Kind
from tests.schemas.vectors import load

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([^`]+)` \| (.*) \|$", re.MULTILINE)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
EVENTS: set[type[events.Event]] = {*get_args(events.FromDevice), *get_args(events.FromCoordinator)}


def section(heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level = heading.index(" ")
    start = PAGE.index(f"\n{heading}\n") + len(heading) + 2
    following = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(PAGE, start)
    return PAGE[start : following.start() if following else len(PAGE)]


def test_the_pages_vectors_are_the_frozen_ones() -> None:
    rows = dict(ROW.findall(section("## Test vectors")))
    vectors = {f"{part}.{name}": value for part, values in load().items() for name, value in values.items()}
    assert rows == {name: f"`{vectors.get(name)}`" for name in rows}
    missing = {"sealed.join", "sealed.welcome", "events.training-request"}
    long = {name for name, value in vectors.items() if len(value) > 600}
    assert set(vectors) - set(rows) <= missing | long | {
        "update.body",
        "update.inner",
        "model.layout_blob",
        "enrolment.welcome_blob",
    }


@pytest.mark.parametrize("event", sorted(EVENTS, key=str))
def test_the_page_names_every_field_of_an_event_in_order(event: type[events.Event]) -> None:
    text = section(f"#### `{event.__struct_config__.tag}`")
    assert tuple(name for name, _ in ROW.findall(text)) == event.__struct_fields__


def test_the_pages_limits_are_the_codes() -> None:
    rows = ROW.findall(section("## Limits"))
    assert len(rows) > 20
    assert rows == [(name, str(getattr(limits, name))) for name, _ in rows]


def test_the_page_names_every_error_code() -> None:
    codes = {error.code for error in errors.WireError.__subclasses__()}
    assert {name for name, _ in ROW.findall(section("## Versions and refusals"))} == codes


def test_the_page_names_every_kind_of_signature_with_its_prefix() -> None:
    rows = re.findall(r"^\| (\w+) \| `(fedbus/[^`]*)`", section("## Signatures"), re.MULTILINE)
    assert rows == [(kind.name.lower(), kind.value.decode().replace("\0", "\\0")) for kind in Kind]


def test_every_test_that_the_page_names_exists_or_is_called_open() -> None:
    missing = []
    for line in section("## Negative tests").splitlines():
        for file, name in NAMED_TEST.findall(line):
            path = ROOT / file
            there = path.exists() and re.search(rf"^(?:async )?def {name}\(", path.read_text(), re.MULTILINE)
            if not there and "open" not in line:
                missing.append(f"{file}::{name}")
    assert missing == []
    assert len(NAMED_TEST.findall(PAGE)) > 60
