"""Real processes, really killed: nothing that was receipted is lost, nothing counts twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from broker.system import system_ports
from coordinator.cli.state import open_journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import Fact, Joined, UpdateJudged, UpdateReceived
from coordinator.replay import first_difference, replay
from edge_agent.ledger import RequestState, read_ledger
from tests.live.fleet import Fleet, children

pytestmark = [pytest.mark.live, pytest.mark.timeout(420)]

KILLS = 20
SEED = 7


def facts(fleet: Fleet) -> list[Fact]:
    journal = open_journal(fleet.home)
    entries = [decode_entry(logged.data) for logged in journal.entries()]
    journal.close()
    return [fact for entry in entries if isinstance(entry, Turned) for fact in entry.facts]


def check(fleet: Fleet, rounds: int) -> None:
    """All rounds done by all devices, each update folded exactly once, and the log folds again."""
    log = facts(fleet)
    assert fleet.job()["rounds_done"] == rounds
    joins = Counter(fact.device for fact in log if isinstance(fact, Joined))
    assert joins == Counter(fleet.devices), "a device enrolled again"
    received = Counter((f.device, f.request) for f in log if isinstance(f, UpdateReceived))
    folded = Counter((f.device, f.request) for f in log if isinstance(f, UpdateJudged) and f.folded)
    assert set(received.values()) == {1}
    assert set(folded.values()) == {1}
    assert len(folded) == rounds * len(fleet.devices)
    result = replay(system_ports(), fleet.home)
    assert result["equal"], first_difference(fleet.home, result)


def test_a_coordinator_killed_at_twenty_moments_finishes_all_rounds(tmp_path: Path) -> None:
    rounds = 60
    draw = random.Random(SEED)
    with Fleet(tmp_path, 5, alpha=0.3) as fleet:
        fleet.run_all()
        pids = {device: fleet.processes[device].pid for device in fleet.devices}
        fleet.submit(rounds=rounds)
        fleet.until(lambda: fleet.job().get("rounds_done", 0) >= 1)
        killed_in_round = [0]
        for kill in range(KILLS):
            if kill % 3 == 0:  # on a slow machine, too, the kills are spread over the run
                fleet.until(lambda: fleet.job().get("rounds_done", 0) > killed_in_round[-1])
            # Any moment of any phase: within a round of about a tenth of a second, or between two.
            time.sleep(draw.uniform(0.05, 0.4))
            killed_in_round.append(fleet.job().get("rounds_done", killed_in_round[-1]))
            fleet.kill("coordinator")
            fleet.serve()
        fleet.until(fleet.finished, 240.0)
        for device, pid in pids.items():
            assert fleet.processes[device].poll() is None, f"{device} ended"
            assert fleet.processes[device].pid == pid
        check(fleet, rounds)
        assert killed_in_round[-1] < rounds, "the kills must hit a run in progress"


def test_an_agent_killed_while_training_finishes_the_job(tmp_path: Path) -> None:
    with Fleet(tmp_path, 2) as fleet:
        fleet.run_all()
        victim = fleet.devices[0]
        # Long enough to be hit in the middle: some seconds of training.
        local = {"epochs": 400, "batch_size": 16, "learning_rate": 0.01}
        fleet.submit(rounds=2, local=local, deadline_s=120.0)
        fleet.until(lambda: accepted(fleet, victim) and children(fleet.processes[victim].pid))
        time.sleep(2.5)
        assert accepted(fleet, victim), "it must still be training"
        fleet.kill(victim)
        fleet.run(victim)
        fleet.until(fleet.finished, 240.0)
        check(fleet, 2)


def accepted(fleet: Fleet, device: str) -> bool:
    """Whether the device holds a request that it has not trained yet."""
    data = read_ledger(system_ports().files, fleet.agent_dir(device))
    return any(record.state is RequestState.ACCEPTED for record in data.requests)


def test_an_agent_killed_between_training_and_receipt_sends_the_same_update(tmp_path: Path) -> None:
    with Fleet(tmp_path, 2) as fleet:
        fleet.run_all()
        victim = fleet.devices[0]
        fleet.submit(rounds=3, deadline_s=120.0)
        # It has the model and trains (PyTorch takes seconds to load): with the coordinator gone there is no
        # receipt, so the update stays in the outbox.
        fleet.until(lambda: accepted(fleet, victim) and children(fleet.processes[victim].pid))
        fleet.kill("coordinator")
        fleet.until(lambda: outbox(fleet, victim))
        sealed = outbox(fleet, victim)
        fleet.kill(victim)
        fleet.run(victim)
        fleet.serve()
        fleet.until(fleet.finished, 240.0)
        check(fleet, 3)
        first = next(f for f in facts(fleet) if isinstance(f, UpdateReceived) and f.device == victim)
        assert sealed == {first.digest.hex()}, "the same ciphertext was sent after the kill"


def outbox(fleet: Fleet, device: str) -> set[str]:
    """Digests of the sealed updates that wait for a receipt."""
    folder = fleet.agent_dir(device) / "outbox"
    bodies = [path for path in folder.glob("*/body") if (path.parent / "sealed").exists()]
    return {sha256(path.read_bytes()).hexdigest() for path in bodies}
