"""Fifty seeded federations with faults of every kind: nothing receipted is lost, nothing counts twice."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from coordinator.facts import RequestAccepted, UpdateReceived, VersionCommitted
from coordinator.replay import replay
from edge_agent.exporting import kept
from edge_agent.identity import load
from edge_agent.sealer import open_sealed
from tests.sim.federation import ROUNDS, run
from tests.sim.invariants import check, facts

SEEDS = 50
FOUND = [166]  # seeds that once showed a defect


@pytest.mark.parametrize("seed", [*range(SEEDS), *FOUND])
def test_every_receipted_update_is_folded_once_or_rejected_with_a_reason(seed: int) -> None:
    check(run(seed))


@pytest.mark.parametrize("seed", [*range(SEEDS), *FOUND])
def test_in_the_end_every_device_that_took_part_holds_the_last_version(seed: int) -> None:
    outcome = run(seed)
    log = facts(outcome)
    last = [f.model for f in log if isinstance(f, VersionCommitted)][-1]
    took_part = {f.device for f in log if isinstance(f, RequestAccepted | UpdateReceived)}
    assert took_part
    for device in took_part:
        files = outcome.devices[device].files
        (model,), _ = kept(files, Path("/agent"), load(files, Path("/agent")))
        assert (model.version, model.state, model.whole) == (ROUNDS, "finished", True)
        opened = open_sealed(files, model.path, model.manifest, model.card.offer.job_key)
        assert sha256(opened).digest() == last


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
