"""One seed after another: what came of each, and what came of all together."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from unittest.mock import patch

from coordinator.facts import AnyFact, Heard, UpdateJudged, VersionCommitted
from tests.sim.crypto import seeded
from tests.sim.federation import run
from tests.sim.fleet import Fleet
from tests.sim.laws import digest
from tests.sim.members import members

TRACE_LINES = 25
ENROL_EVERY = 10  # seeds; the devices of the others are members already
WANTED = ("crash in a round", "lost", "duplicated", "held back", "partition")
"""Faults that nearly every seed must show; what is held back is overtaken by later messages."""
SHARE_MIN, RATIO_MIN = 0.95, 1_000.0
DEVICES_MIN, VERSIONS_MIN, FOLDS_MIN = 20, 5, 100


@dataclass
class Played:
    """What came of one seed. ``problem`` is empty if all held; then there is no ``trace``."""

    seed: int
    devices: int = 0
    versions: int = 0
    folds: int = 0
    rejected: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    real_s: float = 0.0
    cpu_s: float = 0.0
    virtual_s: float = 0.0
    active_s: float = 0.0
    digest: str = ""
    problem: str = ""
    trace: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Virtual to real time, idle stretches left out."""
        return self.active_s / self.real_s if self.real_s else 0.0


def play(seed: int) -> Played:
    """Play one seed. Never raises because something did not hold: it says so."""
    worlds: list[Fleet] = []
    known = members() if seed % ENROL_EVERY else None

    def make(seed: int) -> Fleet:
        worlds.append(Fleet(seed, known))
        return worlds[0]

    gc.disable()  # the garbage of a seed is small, and goes at its end
    gc.freeze()  # what is there by now stays: it need not be looked at then
    began_s, cpu_s, problem, virtual_s = time.perf_counter(), time.process_time(), "", 0.0
    try:
        with seeded(seed), patch.dict(os.environ, clear=True):  # which is another on another machine
            virtual_s = run(seed, make).virtual_s
    except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
        problem = " / ".join(_innermost(error))
    real_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    played = _told(worlds[0], seed, problem)
    played.real_s, played.cpu_s, played.virtual_s = real_s, cpu_s, virtual_s
    worlds.clear()
    gc.collect()
    gc.enable()
    return played


def _innermost(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _innermost(inner)
    else:
        yield f"{type(error).__name__}: {error}"


def _told(world: Fleet, seed: int, problem: str) -> Played:
    judged = [fact for fact in world.log if isinstance(fact, UpdateJudged)]
    folds = sum(fact.folded for fact in judged)
    return Played(
        seed,
        devices=len(world.devices),
        versions=sum(isinstance(fact, VersionCommitted) for fact in world.log),
        folds=folds,
        rejected=len(judged) - folds,
        faults=Counter(world.record.counts),
        active_s=world.active_s,
        digest="" if problem else digest(world),
        problem=problem,
        trace=_trace(world) if problem else [],
    )


def _trace(world: Fleet) -> list[str]:
    world.center.restart()  # it may be dead
    facts: list[AnyFact] = [fact for fact in world.decided() if not isinstance(fact, Heard)]
    lines = ["the last facts:", *(f"  {_short(fact)}" for fact in facts[-TRACE_LINES:])]
    return [*lines, "the last faults:", *(f"  {line}" for line in list(world.record.trace)[-TRACE_LINES:])]


def _short(fact: AnyFact) -> str:
    fields = ((name, getattr(fact, name)) for name in fact.__struct_fields__)
    shown = (
        f"{name}={value.hex()[:8] if isinstance(value, bytes) else value}"
        for name, value in fields
        if isinstance(value, bytes | str | int | float) and value != ""
    )
    return f"{fact.__struct_config__.tag} {' '.join(shown)}"


def summary(all_played: Sequence[Played], took_s: float) -> Iterator[str]:
    """Lines for a person; those that say what is missing begin with "NOT"."""
    good = [played for played in all_played if not played.problem]
    failed = [played.seed for played in all_played if played.problem]
    yield f"{len(all_played)} seeds, {len(failed)} failed, {took_s:.0f} s"
    if not good:
        return
    faults: Counter[str] = sum((played.faults for played in good), Counter())
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))
    real_s, cpu_s, virtual_s = (
        median(getattr(played, name) for played in good) for name in ("real_s", "cpu_s", "active_s")
    )
    yield f"a seed: {real_s:.2f} s, {cpu_s:.2f} s of a processor, {virtual_s:,.0f} virtual s, not idle"
    yield f"folds {_spread(p.folds for p in good)}, rejected {_spread(p.rejected for p in good)} a seed"
    yield f"faults: {shown}"
    for kind in WANTED:
        share = sum(played.faults[kind] > 0 for played in good) / len(good)
        yield f"{'' if share >= SHARE_MIN else 'NOT '}{share:.1%} of the seeds with: {kind}"
    ratio = median(played.ratio for played in good)
    enough = "" if ratio >= RATIO_MIN else "NOT enough: "
    yield f"{enough}{ratio:,.0f} times real time (median, idle stretches left out)"
    small = [played.seed for played in good if not _large_enough(played)]
    yield f"NOT large enough: {small[:20]}" if small else "all large enough"


def _large_enough(played: Played) -> bool:
    return played.devices >= DEVICES_MIN and played.versions >= VERSIONS_MIN and played.folds >= FOLDS_MIN


def _spread(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]}–{ordered[-1]}"
