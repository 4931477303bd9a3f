"""A job's report: gathered from its log, read-only, beside a coordinator that serves or without one."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.journal import Journal
from broker.ports import Ports
from coordinator import records, recovery, scores
from coordinator.apply import apply
from coordinator.cli.output import Failed
from coordinator.control import CommandFailed
from coordinator.entries import Turned, decode_entry
from coordinator.facts import JobSubmitted, RequestDeclined, RequestsIssued, UpdateJudged
from coordinator.history import View, history
from coordinator.keystore import KeyStore, load_identity
from coordinator.report.traffic import Traffic, count_traffic
from coordinator.snapshots import Snapshot
from coordinator.state import Job, State
from coordinator.store import Store


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracies on a test set that no device saw: of each version of the model, of each device's own model,
    of one that was trained on all data. Only a demonstration knows them."""

    federated: list[float]
    local_only: list[float]
    centralised: float


@dataclass(slots=True)
class Participation:
    """What one device contributed. ``samples`` are those of its newest folded update, ``steps`` the optimiser
    steps of all of them; reasons are counted."""

    device: str
    entity: str = ""
    asked: int = 0
    folded: int = 0
    samples: int = 0
    steps: int = 0
    train_s: float = 0.0
    rejected: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    traffic: Traffic = field(default_factory=Traffic)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows. ``dead_letters`` is the live coordinator's answer, None without one."""

    directory: Path
    federation: str
    broker: str
    job: Job
    rounds: list[View]
    devices: list[Participation]
    began_wall_s: float
    newest_wall_s: float
    journal_index: int
    journal_head: str
    dead_letters: dict[str, Any] | None = None
    comparison: Comparison | None = None
    central: list[View] = field(default_factory=list)

    def evaluated(self, metric: str) -> list[tuple[int, float]]:
        """What the devices measured before their rounds, as (the round that the model came from, mean)."""
        return [(view["round"] - 1, view[metric]) for view in self.rounds if view[metric] is not None]

    def tested(self, metric: str) -> list[tuple[int, float]]:
        """What versions score at the coordinator, as (the round that the model came from, score)."""
        return [(one["version"], one["metrics"][metric]) for one in self.central if metric in one["metrics"]]


def require_plots() -> None:
    """Raises `Failed` where matplotlib is not installed."""
    # For a user without a home it works in a temporary folder, and would complain of that every time.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Failed(
            "a report's plots need matplotlib, which is not installed; install fedbus[report]"
        ) from error


def gather(
    ports: Ports,
    directory: Path,
    name: str,
    *,
    broker: str,
    dead_letters: dict[str, Any] | None = None,
    comparison: Comparison | None = None,
) -> Report:
    """Read all of it. Raises `CommandFailed` if there is no such job, `broker.journal.JournalError`,
    `coordinator.keystore.KeysMissing`, OSError."""
    identity = load_identity(ports.files, directory)
    store = Store(ports.files, directory, identity, KeyStore(ports.files, directory, ports.entropy))
    journal, base = recovery.open_whole(ports.files, directory, identity.federation)
    try:
        state, known = _read(journal, name, base)
        if name not in state.jobs:
            raise CommandFailed(f"there is no job {name}; `fedbus-coordinator jobs list` shows them")
        traffic = count_traffic(journal, ports.files, directory, identity, store)
    finally:
        journal.close()
    with records.reading(ports.files, directory, identity.federation) as tables:
        rounds, central = history(tables, name), scores.central(tables, name)
    for (device, job), bytes_moved in traffic.items():
        if job == name:
            known.device(device).traffic = bytes_moved
    for participation in known.devices.values():
        participation.entity = state.devices[participation.device].entity
    return Report(
        directory=directory.absolute(),
        federation=identity.federation.hex(),
        broker=broker,
        job=state.jobs[name],
        rounds=rounds,
        devices=[known.devices[device] for device in sorted(known.devices)],
        began_wall_s=known.began_wall_s,
        newest_wall_s=known.newest_wall_s,
        journal_index=journal.count,
        journal_head=journal.head.hex(),
        dead_letters=dead_letters,
        comparison=comparison,
        central=central,
    )


@dataclass(slots=True)
class _Known:
    """What the log says of one job, device by device."""

    devices: dict[str, Participation] = field(default_factory=dict)
    began_wall_s: float = 0.0
    newest_wall_s: float = 0.0

    def device(self, name: str) -> Participation:
        return self.devices.setdefault(name, Participation(name))


def _read(journal: Journal, name: str, base: Snapshot | None) -> tuple[State, _Known]:
    state, known = base.recovered.state if base else State(), _Known()
    # By device and request: what was folded may be rejected after all, when its job ends before its round.
    verdicts: dict[tuple[str, int], UpdateJudged] = {}
    declines: dict[tuple[str, int], RequestDeclined] = {}
    for logged in journal.entries(base.mark.index if base else 0):
        entry = decode_entry(logged.data)
        for fact in entry.facts if isinstance(entry, Turned) else ():
            apply(state, fact, entry.at.run_s)
            if getattr(fact, "job", None) != name:
                continue
            known.newest_wall_s = entry.at.wall_s
            match fact:
                case JobSubmitted():
                    known.began_wall_s = entry.at.wall_s
                case RequestsIssued():
                    for issued in fact.requests:
                        known.device(issued.device).asked += 1
                case UpdateJudged():
                    verdicts[fact.device, fact.request] = fact
                case RequestDeclined():
                    declines[fact.device, fact.request] = fact
                case _:
                    pass
    for verdict in verdicts.values():
        _count(known.device(verdict.device), verdict)
    for decline in declines.values():
        known.device(decline.device).declined[decline.reason] += 1
    return state, known


def _count(participation: Participation, verdict: UpdateJudged) -> None:
    if verdict.folded:
        participation.folded += 1
        participation.samples = verdict.samples
        participation.steps += verdict.steps
    else:
        # The kind of fault; its details differ from update to update (`jobs show --json` has them).
        participation.rejected[verdict.reason.partition(":")[0]] += 1
    participation.train_s += verdict.train_s
