"""Whatever is measured, and whenever the coordinator dies: the facts tell the same; nothing is left out."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.effects import EvaluateVersion
from coordinator.facts import VersionEvaluated
from coordinator.state import JobState
from tests.coordinator.drive import ordered
from tests.coordinator.evaluating import PATH, begun, both, central, ends, settle

scores = st.one_of(st.floats(0, 1), st.sampled_from([math.inf, -1e300, 1e15, 0.5]))
happenings = st.one_of(
    st.tuples(st.just("round"), scores, scores),
    st.tuples(st.just("central"), st.integers(0, 9), scores),
    st.tuples(st.just("failed"), st.integers(0, 9), st.none()),
    st.tuples(st.just("restart"), st.none(), st.none()),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(happenings, max_size=15), st.sampled_from(["central", "federated"]), st.booleans())
def test_whatever_is_measured_recovery_agrees_and_a_job_ends_once(
    happened: list[tuple[str, Any, Any]], by: str, strict: bool
) -> None:
    fields = {"by": by, "target": 0.99, "patience": 3, "alarm_rises": 2, "stop_on_divergence": strict}
    drive = begun(rounds=6, dataset=PATH, **fields)
    for what, one, other in happened:
        job = drive.state.jobs["job"]
        if what == "round" and job.state is JobState.RUNNING:
            both(drive, accuracy=one, loss=other)
        elif what == "central":
            central(drive, one, accuracy=other)
        elif what == "failed":
            central(drive, one, problem="it failed")
        elif what == "restart":
            drive.restart()
            settle(drive)
    job = drive.state.jobs["job"]
    assert len(ends(drive)) == (job.state is not JobState.RUNNING)
    assert job.progress.best < len(job.versions)
    tried = [fact.version for fact in drive.recorded(VersionEvaluated) if fact.source == "central"]
    assert tried == sorted(set(tried))
    wanted = [order.version for order in ordered(drive.restart(), EvaluateVersion)]
    newest = job.versions[-1].number
    assert wanted == ([newest] if job.progress.tried < newest else []), "what has no outcome is done again"
