"""How many faults a plan makes, and of which kinds."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.chaos.plan import KILLS, Kind, Plan

ALL = frozenset(Kind)


def made(plan: Plan, misses: int = 0) -> list[Kind]:
    """All that a plan makes; the first ones miss."""
    found = []
    while (kind := plan.next()) is not None:
        found.append(kind)
        plan.done(kind, hit=len(found) > misses)
    return found


def test_what_missed_is_made_again_until_each_kind_has_hit_as_often_as_wanted() -> None:
    wanted = dict.fromkeys(KILLS, 3)
    plan = Plan(random.Random(1), wanted, 0.0, ALL)
    assert len(made(plan, misses=4)) == 3 * len(KILLS) + 4
    assert plan.hit == Counter(wanted)


def test_a_plan_whose_faults_never_hit_ends_with_an_error() -> None:
    plan = Plan(random.Random(1), {Kind.WORKER: 2}, 0.0, ALL)
    with pytest.raises(RuntimeError, match="of kind worker missed"):
        made(plan, misses=1_000)


def test_a_seed_gives_the_same_faults_in_the_same_order() -> None:
    once, again = (made(Plan(random.Random(7), dict.fromkeys(Kind, 4), 0.0, ALL)) for _ in range(2))
    assert once == again
    assert Counter(once) == dict.fromkeys(Kind, 4)


def test_when_the_time_is_over_nothing_more_is_begun() -> None:
    plan = Plan(random.Random(1), {}, 0.0, ALL)
    plan.start()
    assert plan.next() is None


def test_what_cannot_be_had_here_and_what_would_take_too_long_is_not_begun() -> None:
    plan = Plan(random.Random(1), {}, 60.0, ALL - {Kind.DISK})
    plan.start()
    assert {plan.next() for _ in range(200)} == ALL - {Kind.DISK, Kind.STOP}
