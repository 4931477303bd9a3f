"""docs/brokers.md: its guarantees are those in `CAPABILITIES`, which the suite measures, its numbers those in
the files of the benches."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

import pytest

from tests.contract.capabilities import CAPABILITIES, WINDOW, Capabilities

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PAGE: Final = (DOCS / "brokers.md").read_text(encoding="utf-8")
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


def table(corner: str = "at the bus") -> dict[str, dict[str, str]]:
    """The cells by row and column."""
    lines = PAGE.split("\n## What each guarantees\n")[1].split("\n\n")
    (found,) = [block for block in lines if block.startswith(f"| {corner}")]
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


def per_broker(bench: str) -> dict[str, dict[str, float]]:
    """The rows of a file in docs/bench; of several for one broker, the first."""
    rows = json.loads((DOCS / "bench" / f"{bench}.json").read_text(encoding="utf-8"))["rows"]
    return {row["broker"]: row for row in reversed(rows)}


@pytest.mark.parametrize("column", ["Mosquitto", "RabbitMQ"])
def test_every_measured_number_is_in_the_file_that_the_page_names(column: str) -> None:
    carried, waiting = (per_broker(bench)[column.lower()] for bench in ("throughput", "waiting"))
    idle_bytes = waiting["broker_rss_idle_bytes"] - waiting["broker_rss_empty_bytes"]
    each_kib = idle_bytes / waiting["devices"] / 1024
    said = {row["file and field in [bench/](bench/)"]: row[column] for row in table("measured").values()}
    assert said == {
        "`throughput.json`, `raw_mib_per_s`": f"{carried['raw_mib_per_s']:.0f}",
        "`throughput.json`, `receipted_mib_per_s`": f"{carried['receipted_mib_per_s']:.0f}",
        "`throughput.json`, `round_ratio`": f"{carried['round_ratio']:.2f}",
        "`waiting.json`, `broker_rss_idle_bytes` less `broker_rss_empty_bytes`": f"{each_kib:.1f}",
    }
