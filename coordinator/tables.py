"""The tables of the read model (`coordinator.records`): what the log says, for queries."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Boolean, Column, Float, Integer, LargeBinary, MetaData, String, Table

TABLES: Final = MetaData()

position: Final = Table(
    "position",  # one row: the entry of the log that the tables are as of
    TABLES,
    Column("entry", Integer, nullable=False),
    Column("head", LargeBinary, nullable=False),
)
devices: Final = Table(
    "devices",
    TABLES,
    Column("device", String, primary_key=True),
    Column("entity", String, nullable=False),
    Column("joined_wall_s", Float, nullable=False),
    Column("revoked_wall_s", Float),
)
jobs: Final = Table(
    "jobs",
    TABLES,
    Column("job", String, primary_key=True),
    Column("task", String, nullable=False),
    Column("spec", String, nullable=False),  # JSON
    Column("state", String, nullable=False),  # of state.JobState
    Column("reason", String, nullable=False, default=""),
    Column("submitted_wall_s", Float, nullable=False),
    Column("ended_wall_s", Float),
)
rounds: Final = Table(
    "rounds",
    TABLES,
    Column("job", String, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("opened_wall_s", Float, nullable=False),
    Column("issued_run_s", Float),
    Column("version", Integer),
    Column("model", String),  # SHA-256, hex
    Column("committed_run_s", Float),
    Column("committed_wall_s", Float),
)
requests: Final = Table(
    "requests",
    TABLES,
    Column("job", String, primary_key=True),
    Column("device", String, primary_key=True),
    Column("request", Integer, primary_key=True),
    Column("round", Integer, nullable=False, index=True),
    Column("issued_wall_s", Float, nullable=False),
    Column("state", String, nullable=False),  # of state.RequestState
    Column("entry", Integer, nullable=False),  # that gave it this state
    Column("reason", String, nullable=False, default=""),
    Column("text", String, nullable=False, default=""),
    Column("received_wall_s", Float),
    Column("samples", Integer),
    Column("steps", Integer),
    Column("train_s", Float),
    Column("norm", Float),
    Column("cosine", Float),  # to the round's Δ, where a rule over all updates made it
    Column("counted", Boolean),  # by that rule
    Column("content", String),  # SHA-256 of the update, hex
    Column("metrics", String),  # JSON, as the device said
    Column("evaluation", String),  # JSON, of the model that the round began with, as the device said
    Column("counts_in", Integer, index=True),  # the round whose version holds its update
)
