"""Seeded federations whose updates travel compressed, with faults of every kind and many deaths."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.bodies import Bodies
from coordinator.facts import UpdateReceived
from coordinator.keystore import load_identity
from coordinator.replay import first_difference, replay
from coordinator.verify import verify
from edge_agent.private import RESIDUALS
from tests.sim.crypto import seeded
from tests.sim.federation import World, run
from tests.sim.invariants import check, facts

UPS = ("topk", "eden3", "q4", "bfloat16")


class Compressed(World):
    """Whose job names an encoding, another one with each seed."""

    def job(self) -> dict[str, object]:
        return super().job() | {"compression": {"up": UPS[self.seed % len(UPS)], "fraction": 0.1}}


@pytest.mark.parametrize("seed", range(8))
def test_compressed_updates_count_once_and_the_log_folds_again(seed: int) -> None:
    with seeded(seed):
        outcome = run(seed, Compressed)
    check(outcome)
    files, home = outcome.coordinator.files, Path(outcome.directory)
    result = replay(outcome.coordinator.ports, home)
    assert result["equal"], first_difference(home, result)
    assert verify(files, home, load_identity(files, home).federation, durable=0).damage == []
    received = [fact for fact in facts(outcome) if isinstance(fact, UpdateReceived)]
    assert len(list(Bodies(files, home / "bodies").names())) >= len(received) > 0
    left = {
        name: machine.files.names(Path("/agent") / RESIDUALS) for name, machine in outcome.devices.items()
    }
    assert left == {name: [] for name in outcome.devices}, "what was left out outlived its job"
