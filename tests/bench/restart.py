"""A coordinator is killed in the middle of a round, while five agents live on: how soon work goes on, and
whether any of it is done twice."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from broker.system import system_ports
from coordinator.cli.state import open_journal, read_state
from coordinator.entries import Turned, decode_entry
from coordinator.facts import Joined, UpdateJudged
from coordinator.state import OPEN_REQUEST
from tests.live.fleet import Fleet

DEVICES = 5
KILLS = 20  # that hit an open round
ROUNDS = 400  # more than it takes
APART_S = 1.0  # up to so long after a round, the next kill


def measure() -> dict[str, Any]:
    """Seconds from the start of each new coordinator's process to the next folded update."""
    clock, draw = system_ports().clock, random.Random(0)
    began_wall_s: list[float] = []
    with TemporaryDirectory(prefix="fedbus-restart-") as name:
        with Fleet(Path(name), DEVICES, alpha=0.3) as fleet:
            fleet.run_all()
            fleet.submit(rounds=ROUNDS)
            fleet.until(lambda: fleet.job().get("rounds_done", 0) >= 1)
            while len(began_wall_s) < KILLS:
                _go_on(fleet)
                time.sleep(draw.uniform(0, APART_S))
                fleet.kill("coordinator")
                hit, began = _in_round(fleet.home), clock.wall_s()
                fleet.serve()
                began_wall_s += [began] if hit else []
            _go_on(fleet)
            _go_on(fleet)  # whatever was open is over
            fleet.ask("cancel", job="digits")
        folded, joined = _log(fleet.home)
        waits_s = [min(at for at in folded if at > began) - began for began in began_wall_s]
        return {
            "devices": DEVICES,
            "kills_in_a_round": len(waits_s),
            "to_next_fold_s": waits_s,
            "to_next_fold_s_median": median(waits_s),
            "folded": len(folded),
            "trained_twice": sum(count - 1 for count in _trained(fleet).values()),
            "joined_again": joined - DEVICES,
        }


def _go_on(fleet: Fleet) -> None:
    """One more round comes to its end."""
    done = fleet.job()["rounds_done"]
    fleet.until(lambda: fleet.job().get("rounds_done", 0) > done)


def _in_round(home: Path) -> bool:
    round_ = read_state(home).jobs["digits"].round
    return round_ is not None and any(request.state in OPEN_REQUEST for request in round_.requests)


def _log(home: Path) -> tuple[list[float], int]:
    """When updates were folded (wall time), and how often a device joined."""
    journal = open_journal(home)
    turns = [entry for logged in journal.entries() if isinstance(entry := decode_entry(logged.data), Turned)]
    journal.close()
    facts = [(turn.at.wall_s, fact) for turn in turns for fact in turn.facts]
    folded = [at for at, fact in facts if isinstance(fact, UpdateJudged) and fact.folded]
    return folded, sum(isinstance(fact, Joined) for _, fact in facts)


def _trained(fleet: Fleet) -> Counter[tuple[str, int]]:
    """How often each device trained each request, by what it said."""
    found = Counter[tuple[str, int]]()
    for device in fleet.devices:
        for line in (fleet.directory / f"{device}.log").read_text().splitlines():
            if line.startswith("{") and (said := json.loads(line))["event"].startswith("trained:"):
                found[device, said["request"]] += 1
    return found
