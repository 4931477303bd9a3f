"""docs/brokers.md: its table of guarantees says what `CAPABILITIES` says, which the suite measures."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

import pytest

from tests.contract.capabilities import CAPABILITIES, WINDOW, Capabilities

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "brokers.md").read_text(encoding="utf-8")
COLUMNS: Final = {
    "embedded": "embedded",
    "Mosquitto": "mosquitto",
    "RabbitMQ, MQTT": "rabbitmq-mqtt",
    "RabbitMQ, AMQP": "rabbitmq-amqp",
}
ROWS: Final = {
    "ordered": "what one sender says arrives in that order",
    "queues_offline": "2,000 messages to a session that is away wait for it",
    "redelivers": "what a reader had not acknowledged when it was killed comes again",
    "outlives_stop": "what waits is there after the broker was stopped and started",
    "outlives_kill": "and after a `kill -9` of the broker",
    "denied_shows": "publishing where one may not is an error for the sender",
    "unroutable_shows": "publishing where nobody listens is an error for the sender",
    "window": "messages in flight to one reader beyond the acknowledged ones",
}


def table() -> dict[str, dict[str, str]]:
    """The cells by row and column."""
    lines = PAGE.split("\n## What each guarantees\n")[1].split("\n\n")
    (found,) = [block for block in lines if block.startswith("| at the bus")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def in_words(value: bool | int | None) -> str:
    match value:
        case None:
            return "no bound"
        case bool():
            return "yes" if value else "no"
    return "as asked for" if value == WINDOW else str(value)


def test_every_capability_of_every_broker_has_its_cell() -> None:
    assert set(ROWS) == {field.name for field in fields(Capabilities)}
    assert set(COLUMNS.values()) | {"memory"} == set(CAPABILITIES)
    assert set(table()) == set(ROWS.values())


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_says_what_the_suite_measures(column: str) -> None:
    promised = asdict(CAPABILITIES[COLUMNS[column]])
    said = {name: table()[row][column] for name, row in ROWS.items()}
    assert said == {name: in_words(value) for name, value in promised.items()}
