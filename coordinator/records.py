"""The read model: the log as tables (``records.db``, SQLite), for people and their programs.

Whoever reads brings it up to date first, from where it stood. The coordinator itself never asks it, and all
that is in it stands in the log: it is made anew when it is missing, damaged, of another form or of another
history. It keeps what was pruned from the log since.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    MetaData,
    Table,
    bindparam,
    create_engine,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import StaticPool

from broker.journal import Entry, Journal, Mark
from broker.ports import Files
from coordinator import scores
from coordinator.entries import Turned, decode_entry
from coordinator.facts import (
    AnyFact,
    DeviceRevoked,
    JobEnded,
    JobSubmitted,
    Joined,
    RequestAccepted,
    RequestDeclined,
    RequestsIssued,
    RoundClosed,
    RoundOpened,
    UpdateJudged,
    UpdateReceived,
    VersionCommitted,
    VersionEvaluated,
)
from coordinator.inputs import Moment
from coordinator.recovery import FOLDER
from coordinator.state import JobState, RequestState
from coordinator.tables import TABLES, devices, jobs, position, requests, rounds

FILE: Final = "records.db"
FORM: Final = 2  # rises when the tables or what is put into them change
PATIENCE_S: Final = 60.0  # while another reader brings them up to date
log: Final = logging.getLogger(__name__)

_JOB = update(jobs).where(jobs.c.job == bindparam("of_job"))
_ROUND = update(rounds).where(rounds.c.job == bindparam("of_job"), rounds.c.round == bindparam("of_round"))
_REQUEST = update(requests).where(
    requests.c.job == bindparam("of_job"),
    requests.c.device == bindparam("of_device"),
    requests.c.request == bindparam("of_request"),
)
_COUNTED = update(requests).where(
    requests.c.job == bindparam("of_job"),
    requests.c.state == RequestState.FOLDED,
    requests.c.counts_in.is_(None),
)
_DEVICE = update(devices).where(devices.c.device == bindparam("of_device"))


@contextmanager
def reading(files: Files, directory: Path, federation: bytes) -> Iterator[Connection]:
    """A connection to the tables, as the log is now. Where they can't be kept (no room, no right, held by
    another for long) they are made in memory, and that is told in the log.

    Raises `broker.journal.JournalError`, OSError.
    """
    engine = _caught_up(files, directory, federation)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _caught_up(files: Files, directory: Path, federation: bytes) -> Engine:
    path = directory / FILE
    try:
        files.open(path, create=True).close()  # as private as all that is here
        try:
            return _followed(path, files, directory, federation)
        except DatabaseError as error:
            if isinstance(error, OperationalError):
                raise  # the file may be in order
            files.remove(path)
            return _followed(path, files, directory, federation)
    except (OperationalError, OSError) as error:
        cause = error.orig if isinstance(error, OperationalError) else error
        log.warning("%s can't be kept (%s): what was pruned from the journal is not shown", path, cause)
    return _followed(None, files, directory, federation)


def _followed(path: Path | None, files: Files, directory: Path, federation: bytes) -> Engine:
    """Apply what the log has besides; in one transaction, which keeps readers apart. Raises DatabaseError."""
    url = URL.create("sqlite", database=str(path) if path else None)
    pool = None if path else StaticPool  # one connection, or the tables in memory were gone
    engine = create_engine(url, poolclass=pool, connect_args={"timeout": PATIENCE_S, "isolation_level": None})
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            _follow(connection, files, directory / FOLDER, federation)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _follow(connection: Connection, files: Files, folder: Path, federation: bytes) -> None:
    mark = _mark(connection)
    journal = Journal.open(files, folder, federation, read_only=True, marks=[mark] if mark else [])
    if mark and journal.since != mark:  # they were made from another log
        journal.close()
        journal, mark = Journal.open(files, folder, federation, read_only=True), None
    try:
        if mark is None:
            _begin_anew(connection)
        scores.make(connection)  # came later, with its facts: what is there is as it would be
        for logged in journal.entries(mark.index if mark else 0):
            _apply(connection, logged)
        connection.execute(update(position).values(entry=journal.count, head=journal.head))
    finally:
        journal.close()


def _mark(connection: Connection) -> Mark | None:
    """Up to where the tables go; None if they are not there, not whole, or in another form."""
    if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
        return None
    if connection.exec_driver_sql("PRAGMA user_version").scalar() != FORM:
        return None
    found = connection.execute(select(position)).one_or_none()
    return Mark(found.entry, found.head) if found and found.entry else None


def _begin_anew(connection: Connection) -> None:
    for name in inspect(connection).get_table_names():
        Table(name, MetaData()).drop(connection)
    TABLES.create_all(connection)
    connection.execute(insert(position).values(entry=0, head=b""))
    connection.exec_driver_sql(f"PRAGMA user_version = {FORM}")


def _apply(connection: Connection, logged: Entry) -> None:
    entry = decode_entry(logged.data)
    for fact in entry.facts if isinstance(entry, Turned) else ():
        _put(connection, fact, entry.at, logged.index)


def _put(connection: Connection, fact: AnyFact, at: Moment, index: int) -> None:
    """Facts about what the tables don't have change nothing: its beginning was pruned before it was read."""
    match fact:
        case Joined():
            row = {"device": fact.device, "entity": fact.entity, "joined_wall_s": at.wall_s}
            connection.execute(insert(devices).prefix_with("OR REPLACE"), row)
        case DeviceRevoked():
            connection.execute(_DEVICE, {"of_device": fact.device, "revoked_wall_s": at.wall_s})
        case JobSubmitted():
            spec = msgspec.json.encode(fact.spec).decode()
            row = {"job": fact.job, "task": fact.spec.task, "spec": spec, "state": JobState.PREPARING}
            connection.execute(insert(jobs), row | {"submitted_wall_s": at.wall_s})
        case JobEnded():
            row = {"state": fact.state, "reason": fact.reason, "ended_wall_s": at.wall_s}
            connection.execute(_JOB, {"of_job": fact.job} | row)
        case RoundOpened():
            row = {"job": fact.job, "round": fact.round, "opened_wall_s": at.wall_s}
            row["issued_run_s"] = None if fact.cohort else at.run_s  # nobody has to be asked
            connection.execute(insert(rounds).prefix_with("OR IGNORE"), row)
        case RoundClosed():  # of what waited for it, before anybody was asked (asynchronous jobs)
            _begin(connection, fact, at)
        case VersionCommitted():
            connection.execute(_JOB, {"of_job": fact.job, "state": JobState.RUNNING})
            times = {"committed_run_s": at.run_s, "committed_wall_s": at.wall_s}
            row = {"version": fact.version, "model": fact.model.hex()} | times
            connection.execute(_ROUND, {"of_job": fact.job, "of_round": fact.round} | row)
            connection.execute(_COUNTED, {"of_job": fact.job, "counts_in": fact.round})
            for one in fact.leanings:
                key = {"of_job": fact.job, "of_device": one.device, "of_request": one.request}
                connection.execute(_REQUEST, key | {"cosine": one.cosine, "counted": one.counted})
        case RequestsIssued():
            _issue(connection, fact, at, index)
        case RequestAccepted():
            connection.execute(_REQUEST, _of(fact) | {"state": RequestState.ACCEPTED, "entry": index})
        case RequestDeclined():
            row = {"state": RequestState.DECLINED, "entry": index, "reason": fact.reason, "text": fact.text}
            connection.execute(_REQUEST, _of(fact) | row)
        case UpdateReceived():
            row = {"state": RequestState.RECEIVED, "entry": index, "received_wall_s": at.wall_s}
            connection.execute(_REQUEST, _of(fact) | row)
        case UpdateJudged():
            connection.execute(_REQUEST, _of(fact) | _judged(fact, index))
        case VersionEvaluated():
            scores.keep(connection, fact)
        case _:
            pass


def _of(fact: RequestAccepted | RequestDeclined | UpdateReceived | UpdateJudged) -> dict[str, Any]:
    return {"of_job": fact.job, "of_device": fact.device, "of_request": fact.request}


def _begin(connection: Connection, fact: RequestsIssued | RoundClosed, at: Moment) -> None:
    """A round's clock starts, unless it runs."""
    first = _ROUND.where(rounds.c.issued_run_s.is_(None))
    connection.execute(first, {"of_job": fact.job, "of_round": fact.round, "issued_run_s": at.run_s})


def _issue(connection: Connection, fact: RequestsIssued, at: Moment, index: int) -> None:
    _begin(connection, fact, at)
    known = select(rounds).where(rounds.c.job == fact.job, rounds.c.round == fact.round)
    if connection.execute(known).first() is None or not fact.requests:
        return
    shared = {"job": fact.job, "round": fact.round, "issued_wall_s": at.wall_s}
    rows = [
        shared | {"device": one.device, "request": one.number, "state": RequestState.ISSUED, "entry": index}
        for one in fact.requests
    ]
    connection.execute(insert(requests), rows)


def _judged(fact: UpdateJudged, index: int) -> dict[str, Any]:
    return {
        "state": RequestState.FOLDED if fact.folded else RequestState.REJECTED,
        "entry": index,
        "reason": fact.reason,
        "samples": fact.samples,
        "steps": fact.steps,
        "train_s": fact.train_s,
        "norm": fact.norm,
        "content": fact.content.hex(),
        "metrics": msgspec.json.encode(fact.metrics).decode(),
        "evaluation": msgspec.json.encode(fact.evaluation).decode(),
    }
