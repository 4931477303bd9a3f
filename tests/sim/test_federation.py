"""Seeded federations with faults of every kind: nothing receipted is lost, nothing counts twice. With updates
in more and larger chunks than those of fleets have (`tests.sim.test_fleet`), and more deaths."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from coordinator.facts import RequestAccepted, UpdateReceived, VersionCommitted
from coordinator.replay import first_difference, replay
from edge_agent.exporting import kept
from edge_agent.identity import load
from edge_agent.sealer import open_sealed
from tests.sim.crypto import seeded
from tests.sim.federation import Outcome, World, run
from tests.sim.invariants import check, facts

SEEDS = 40
FOUND = [166]  # seeds that once showed a defect
_crashes: Counter[str] = Counter()


@pytest.mark.parametrize("seed", [*range(SEEDS), *FOUND])
def test_updates_count_once_the_log_folds_again_and_devices_get_the_last_version(seed: int) -> None:
    with seeded(seed):
        outcome = run(seed)
    _crashes.update(outcome.crashes)
    check(outcome)
    check_last_version(outcome)
    result = replay(outcome.coordinator.ports, Path(outcome.directory))
    assert result["equal"], first_difference(Path(outcome.directory), result)


def check_last_version(outcome: Outcome) -> None:
    """Every device that took part holds it."""
    log = facts(outcome)
    last = [f.model for f in log if isinstance(f, VersionCommitted)][-1]
    took_part = {f.device for f in log if isinstance(f, RequestAccepted | UpdateReceived)}
    assert took_part
    for device in took_part:
        files = outcome.devices[device].files
        (model,), _ = kept(files, Path("/agent"), load(files, Path("/agent")))
        assert (model.version, model.state, model.whole) == (World.rounds, "finished", True)
        opened = open_sealed(files, model.path, model.manifest, model.card.offer.job_key)
        assert sha256(opened).digest() == last


def test_the_faults_do_happen() -> None:
    if not _crashes:
        with seeded(0):
            _crashes.update(run(0).crashes)
    assert _crashes["coordinator"]
    assert _crashes["d"]
