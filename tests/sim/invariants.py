"""What must hold after every simulated run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.journal import Journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import AnyFact, RoundOpened, UpdateJudged, UpdateReceived, VersionCommitted
from coordinator.keystore import load_identity
from coordinator.recovery import FOLDER
from tests.sim.disk import SimFiles
from tests.sim.federation import Outcome


def facts(outcome: Outcome) -> list[AnyFact]:
    """All that the coordinator decided, in order."""
    return facts_of(outcome.coordinator.files, outcome.directory)


def facts_of(files: SimFiles, directory: Path) -> list[AnyFact]:
    """The facts in the log of a coordinator's directory."""
    identity = load_identity(files, directory)
    journal = Journal.open(files, directory / FOLDER, identity.federation, read_only=True)
    entries = [decode_entry(logged.data) for logged in journal.entries()]
    return [fact for entry in entries if isinstance(entry, Turned) for fact in entry.facts]


def check(outcome: Outcome) -> None:
    """Every update was received once and judged once, whatever was receipted is there, every round was
    committed."""
    check_log(facts(outcome), outcome.receipted, outcome.rounds)


def check_log(log: Sequence[object], receipted: Mapping[str, set[tuple[str, int]]], rounds: int) -> None:
    """`check`, of all facts in order; ``receipted`` by device."""
    received = {(f.device, f.job, f.request): f for f in log if isinstance(f, UpdateReceived)}
    judged = [f for f in log if isinstance(f, UpdateJudged)]
    assert len(received) == sum(isinstance(f, UpdateReceived) for f in log), "received twice"
    verdicts = Counter((f.device, f.job, f.request) for f in judged)
    assert set(verdicts) == set(received), "a receipted update without a verdict, or the reverse"
    assert max(verdicts.values()) == 1, "judged twice"
    assert all(f.folded or f.reason for f in judged), "rejected without a reason"
    for device, keys in receipted.items():
        for job, number in keys:
            assert (device, job, number) in received, "receipted, and then forgotten"
    versions = [f.version for f in log if isinstance(f, VersionCommitted)]
    assert versions == list(range(rounds + 1))
    newest = b""
    for fact in log:
        if isinstance(fact, RoundOpened):
            assert fact.base == newest, "a round on another model than the newest"
        elif isinstance(fact, VersionCommitted):
            newest = fact.model
