"""What versions score, as the log tells: a table beside those of `coordinator.records`."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, select

from coordinator.facts import VersionEvaluated
from coordinator.spread import NO_SCORES
from schemas.jobs import CENTRAL

evaluations: Final = Table(
    "evaluations",
    MetaData(),
    Column("job", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("source", String, primary_key=True),  # of schemas.jobs
    Column("metrics", String, nullable=False),  # JSON
    Column("problem", String, nullable=False),
)


def make(connection: Connection) -> None:
    """The table, if it is not there."""
    evaluations.create(connection, checkfirst=True)


def keep(connection: Connection, fact: VersionEvaluated) -> None:
    """One evaluation."""
    row = {"job": fact.job, "version": fact.version, "source": fact.source, "problem": fact.problem}
    metrics = msgspec.json.encode(fact.metrics).decode()
    connection.execute(insert(evaluations).prefix_with("OR REPLACE"), row | {"metrics": metrics})


def central(tables: Connection, job: str) -> list[dict[str, Any]]:
    """What versions of a job score at the coordinator, in their order; or why that is not known."""
    of_job = evaluations.c.job == job, evaluations.c.source == CENTRAL
    found = tables.execute(select(evaluations).where(*of_job).order_by(evaluations.c.version))
    return [
        {"version": one.version, "metrics": _scores(one.metrics), "problem": one.problem} for one in found
    ]


def _scores(metrics: str) -> dict[str, float]:
    return {name: value for name, value in json.loads(metrics).items() if name not in NO_SCORES}
