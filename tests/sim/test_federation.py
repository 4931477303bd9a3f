"""Fifty seeded federations with faults of every kind: nothing receipted is lost, nothing counts twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from broker.journal import Journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import UpdateJudged, UpdateReceived, VersionCommitted
from coordinator.keystore import load_identity
from coordinator.ledger import FOLDER
from coordinator.replay import replay
from tests.sim.federation import ROUNDS, Outcome, run

SEEDS = 50
FOUND = [166]  # seeds that once showed a defect


def facts(outcome: Outcome) -> list[object]:
    files = outcome.coordinator.files
    identity = load_identity(files, outcome.directory)
    journal = Journal.open(files, outcome.directory / FOLDER, identity.federation, read_only=True)
    entries = [decode_entry(logged.data) for logged in journal.entries()]
    return [fact for entry in entries if isinstance(entry, Turned) for fact in entry.facts]


@pytest.mark.parametrize("seed", [*range(SEEDS), *FOUND])
def test_every_receipted_update_is_folded_once_or_rejected_with_a_reason(seed: int) -> None:
    outcome = run(seed)
    log = facts(outcome)
    received = {(f.device, f.job, f.request): f for f in log if isinstance(f, UpdateReceived)}
    judged = [f for f in log if isinstance(f, UpdateJudged)]
    assert len(received) == sum(isinstance(f, UpdateReceived) for f in log), "received twice"
    verdicts = Counter((f.device, f.job, f.request) for f in judged)
    assert set(verdicts) == set(received), "a receipted update without a verdict, or the reverse"
    assert max(verdicts.values()) == 1, "judged twice"
    assert all(f.folded or f.reason for f in judged), "rejected without a reason"
    for device, keys in outcome.receipted.items():
        for job, number in keys:
            assert (device, job, number) in received, "receipted, and then forgotten"
    versions = [f.version for f in log if isinstance(f, VersionCommitted)]
    assert versions == list(range(ROUNDS + 1))


@pytest.mark.parametrize("seed", range(0, SEEDS, 10))
def test_the_log_folds_again_to_the_same_models(seed: int) -> None:
    outcome = run(seed)
    result = replay(outcome.coordinator.ports, Path(outcome.directory))
    assert result["equal"], result["difference"]


def test_the_faults_do_happen() -> None:
    crashes: Counter[str] = Counter()
    for seed in range(5):
        crashes += run(seed).crashes
    assert crashes["coordinator"] >= 5
    assert crashes["d"] >= 5
