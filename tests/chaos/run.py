"""One run against one broker: faults until the plan is through, then everything that must hold."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.bench.deployed import deployed
from tests.chaos import disks
from tests.chaos.checks import Counted, count
from tests.chaos.faults import Faults, Hit
from tests.chaos.links import Links, Plain, links
from tests.chaos.moments import wait
from tests.chaos.party import Party
from tests.chaos.plan import KILLS, Kind, Plan
from tests.chaos.record import Key, Record, Violation

CALM: Final = 0.7
"""So often work goes on after a fault before the next one; else that one hits in the midst of recovery."""
PACKAGES: Final = {"mosquitto": "mosquitto", "rabbitmq": "rabbitmq-server"}


@dataclass(frozen=True)
class Wish:
    """A run: so many faults of each kind, or, if none are named, whatever fits into the time."""

    broker: str
    seed: int = 0
    counts: Mapping[Kind, int] = field(default_factory=dict)
    duration_s: float = 60.0
    devices: int = 4

    def wants(self, kind: Kind) -> bool:
        """Whether such faults may come."""
        return not self.counts or kind in self.counts


def run(wish: Wish, tell: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    """The summary, and what is wrong; then its directory is kept, and the summary names it. ``tell`` is told
    of each fault."""
    base = Path(tempfile.mkdtemp(prefix=f"fedbus-chaos-{wish.broker}-"))
    tell(f"{wish.broker}, seed {wish.seed}, in {base}")
    began_s = time.monotonic()
    hits: list[Hit] = []
    counted = Counted()
    with _prepared(wish, base) as (party, small, notes):
        record = Record(party.home)
        try:
            with party:
                _hurt(wish, party, record, small, hits, tell)
                _finish(party, record)
            counted = count(party, hits)
        except (Violation, TimeoutError, RuntimeError, subprocess.SubprocessError) as error:
            counted.wrong.append(str(error))
        if counted.wrong:
            (base / "faults.jsonl").write_text("".join(json.dumps(asdict(hit)) + "\n" for hit in hits))
            small.keep()
    seconds = round(time.monotonic() - began_s, 1)
    summary = _summary(wish, hits, counted, notes) | {"seconds": seconds}
    if counted.wrong:
        summary["directory"] = str(base)
    else:
        shutil.rmtree(base)
    return summary, counted.wrong


@contextmanager
def _prepared(wish: Wish, base: Path) -> Iterator[tuple[Party, disks.Disks, list[str]]]:
    """A broker that is set up, and a fleet for it; and what cannot be had here."""
    with ExitStack() as stack:
        notes: list[str] = []
        names = [f"device-{n + 1}" for n in range(wish.devices)]
        places = {"coordinator": base / "federation", names[0]: base / "fleet" / names[0]}
        if not wish.wants(Kind.DISK):
            places = {}
        elif not disks.possible(base):
            notes.append("no small file systems can be mounted here: no disk was filled")
            places = {}
        small = stack.enter_context(disks.Disks(places))
        lines: Links = links(names) if wish.wants(Kind.CUT) else Plain()
        stack.enter_context(lines)
        if lines.kind:
            notes.append(f"lines: {lines.kind}")
        site = stack.enter_context(deployed(wish.broker, base, host=lines.host))
        lines.connect(int(site.device_url.rpartition(":")[2]))
        yield Party(base / "fleet", wish.devices, site, lines, small.places, wish.seed), small, notes


def _hurt(
    wish: Wish, party: Party, record: Record, small: disks.Disks, hits: list[Hit], tell: Callable[[str], None]
) -> None:
    draw = random.Random(wish.seed)
    possible = frozenset(Kind) if small.owners else frozenset(Kind) - {Kind.DISK}
    plan = Plan(draw, wish.counts, wish.duration_s, possible)
    faults = Faults(party, record, draw, small)
    party.run_all()
    party.next_job()
    wait(party, lambda: party.job(party.job_name).get("rounds_done", 0) >= 1, "the first round is done")
    party.settle_broker()
    plan.start()
    while (kind := plan.next()) is not None:
        hit = faults.make(kind)
        hits.append(hit)
        how = f"at entry {hit.index}" if hit.index else "missed"
        where = f"{hit.key.job}, {hit.key.device}, request {hit.key.number}"
        tell(f"{kind} {hit.victim}: {where}, {hit.moment}, {how}")
        plan.done(kind, hit=hit.index > 0)
        if draw.random() < CALM:
            wait(party, partial(_ended, record, hit.key), f"{hit.key} comes to an end")


def _ended(record: Record, key: Key) -> bool:
    record.read()
    return record.over(key)


def _finish(party: Party, record: Record) -> None:
    """All jobs to their end, all devices at rest, all programs ended."""
    party.until(lambda: not party.working())
    party.until(lambda: not any(party.held(device) for device in party.devices))
    party.all_run()
    record.read()


def _summary(wish: Wish, hits: list[Hit], counted: Counted, notes: list[str]) -> dict[str, Any]:
    made = Counter(hit.kind for hit in hits)
    good = Counter(hit.kind for hit in hits if hit.index)
    kills = [hit for hit in hits if hit.kind in KILLS]
    return {
        "broker": wish.broker,
        "seed": wish.seed,
        "faults": {kind.value: good[kind] for kind in Kind if made[kind]},
        "missed": {kind.value: made[kind] - good[kind] for kind in Kind if made[kind] - good[kind]},
        "moments": dict(Counter(hit.moment.value for hit in hits if hit.index)),
        "kills_in_an_open_round": sum(hit.index > 0 for hit in kills) / len(kills) if kills else None,
        "lost": counted.lost,
        "doubled": counted.doubled,
        "receipted": counted.received,
        "receipts_seen": counted.receipts_seen,
        "folded": counted.folded,
        "rejected": counted.rejected,
        "declined": counted.declined,
        "rounds": counted.rounds,
        "jobs": counted.jobs,
        "notes": notes,
    }
