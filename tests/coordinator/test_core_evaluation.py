"""Best version, early stopping, target and alarms: decided by the core, as facts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from coordinator.effects import EvaluateVersion, Fold
from coordinator.evaluation import ALARMS, FAR_ABOVE, NORMS_GROW, RISING, UNMEASURED
from coordinator.facts import VersionEvaluated
from coordinator.state import JobState, RequestState
from schemas.errors import JobRefused
from schemas.jobs import EvaluationSettings, parse_job
from tests.coordinator.drive import Drive, checked, job_spec, ordered
from tests.coordinator.evaluating import (
    DEVICES,
    PATH,
    alarms,
    begun,
    both,
    central,
    ends,
    measured,
    play,
    settle,
)


def test_what_devices_measure_is_recorded_of_the_version_that_they_were_given() -> None:
    drive = begun()
    play(drive, {"accuracy": 0.5, "loss": 2.0}, {"accuracy": 0.7, "loss": 1.0})
    both(drive, accuracy=0.8)
    first, second = drive.recorded(VersionEvaluated)
    assert (first.version, first.source, first.devices) == (0, "federated", 2)
    assert first.metrics == pytest.approx({"accuracy": 0.6, "loss": 1.5})
    assert (second.version, second.metrics) == (1, {"accuracy": 0.8})


def test_a_job_that_does_not_ask_records_no_evaluation() -> None:
    drive = Drive()
    drive.enrol(*DEVICES)
    job = drive.submit(job_spec())
    drive.settle()
    for _ in range(2):
        for device in drive.asked():
            drive.update(device)
            drive.settle()
    assert job.state is JobState.FINISHED
    assert drive.recorded(VersionEvaluated) == []
    assert job.progress.best == -1


def test_the_best_version_is_kept_though_later_ones_are_worse() -> None:
    drive = begun()
    for accuracy in (0.5, 0.8, 0.7, 0.6):
        both(drive, accuracy=accuracy)
    progress = drive.state.jobs["job"].progress
    assert (progress.best, progress.best_score) == (1, 0.8)


def test_of_a_loss_the_smallest_is_best() -> None:
    drive = begun(metric="loss")
    for loss in (0.5, 0.3, 0.4):
        both(drive, loss=loss)
    assert drive.state.jobs["job"].progress.best == 1


def test_the_target_ends_the_job_as_finished_when_the_round_that_told_has_its_version() -> None:
    drive = begun(target=0.9)
    both(drive, accuracy=0.5)
    both(drive, accuracy=0.9)
    (ended,) = ends(drive)
    assert ended == ("finished", "target reached: version 1 scores 0.9, of 0.9")
    assert len(drive.state.jobs["job"].versions) == 3, "what was folded meanwhile is in a version"


def test_patience_ends_the_job_after_so_many_versions_without_enough_improvement() -> None:
    drive = begun(patience=2, min_delta=0.01)
    for accuracy in (0.5, 0.6, 0.605, 0.609):
        assert ends(drive) == []
        both(drive, accuracy=accuracy)
    assert ends(drive) == [("finished", "stopped early: no better than version 3 in 2 evaluations")]
    assert drive.state.jobs["job"].progress.best == 3, "the best is the best, by however little"


def test_small_steps_that_add_up_to_an_improvement_are_one() -> None:
    drive = begun(patience=2, min_delta=0.01)
    for step in range(10):
        both(drive, accuracy=0.5 + step * 0.008)
    assert ends(drive) == []


def test_a_version_that_nobody_measured_is_no_improvement() -> None:
    drive = begun(patience=2)
    both(drive, accuracy=0.5)
    both(drive)
    both(drive)
    assert [state for state, _ in ends(drive)] == ["finished"]


def test_each_nth_version_and_the_last_are_ordered_to_be_evaluated_at_the_coordinator() -> None:
    drive = Drive()
    orders: list[EvaluateVersion] = []
    drive.on_turn = lambda turn: orders.extend(ordered(turn, EvaluateVersion))
    drive.enrol(*DEVICES)
    spec = job_spec(rounds=3, cohort=2, min_reports=2)
    drive.submit(replace(spec, evaluation=EvaluationSettings(dataset=PATH, every=2)))
    settle(drive)
    for _ in range(3):
        both(drive)
    assert sorted({order.version for order in orders}) == [0, 2, 3]


def test_what_has_no_outcome_is_ordered_again_after_a_start_also_when_the_job_is_over() -> None:
    drive = begun(rounds=1, dataset=PATH)
    central(drive, 0, accuracy=0.5)
    assert ordered(drive.restart(), EvaluateVersion) == []
    settle(drive)
    both(drive, accuracy=0.5)
    assert ends(drive) == [("finished", "1 rounds")]
    assert ordered(drive.restart(), EvaluateVersion) == [EvaluateVersion("job", 1)]
    central(drive, 1, accuracy=0.9)
    assert drive.state.jobs["job"].progress.best == 1
    assert ordered(drive.restart(), EvaluateVersion) == []


def test_an_evaluation_that_is_told_twice_or_late_is_recorded_once() -> None:
    drive = begun(dataset=PATH)
    both(drive)
    central(drive, 1, accuracy=0.5)
    assert central(drive, 1, accuracy=0.6).facts == []
    assert central(drive, 0, accuracy=0.6).facts == []
    assert central(drive, 9, accuracy=0.6).facts == []


def test_an_evaluation_that_fails_is_an_outcome_and_harms_nothing() -> None:
    drive = begun(dataset=PATH, patience=1, stop_on_divergence=True)
    central(drive, 0, problem=f"{PATH}: no such file")
    job = drive.state.jobs["job"]
    assert (job.state, job.progress.problem) == (JobState.RUNNING, f"{PATH}: no such file")
    assert ordered(drive.restart(), EvaluateVersion) == []
    settle(drive)
    both(drive, accuracy=0.5)
    central(drive, 1, accuracy=0.5)
    assert job.progress.problem == ""


def test_the_coordinators_word_ends_a_job_at_once_and_what_was_folded_meanwhile_is_rejected() -> None:
    drive = begun(dataset=PATH, target=0.9)
    drive.update("a")
    fold = drive.pending.pop(0)
    assert isinstance(fold, Fold)
    drive.step(checked(fold))
    central(drive, 0, accuracy=0.95)
    assert ends(drive) == [("finished", "target reached: version 0 scores 0.95, of 0.9")]
    request = drive.newest("a")
    assert (request.state, request.reason) == (RequestState.REJECTED, "the job was finished")


def test_by_central_what_devices_say_ends_nothing() -> None:
    drive = begun(dataset=PATH, target=0.9, patience=1)
    for _ in range(3):
        both(drive, accuracy=1.0)
    assert ends(drive) == []
    assert drive.state.jobs["job"].progress.best == -1


def test_a_loss_that_rises_again_and_again_raises_one_alarm_and_the_job_goes_on() -> None:
    drive = begun(alarm_rises=2)
    for loss in (1.0, 1.1, 1.2, 1.3):
        both(drive, accuracy=0.5, loss=loss)
    assert alarms(drive) == [(2, RISING)]
    assert ends(drive) == []


def test_a_loss_far_above_its_least_raises_an_alarm_each_time_it_gets_there() -> None:
    drive = begun(alarm_factor=2.0)
    for loss in (1.0, 1.9, 2.1, 2.2, 1.0, 2.5):
        both(drive, accuracy=0.5, loss=loss)
    assert alarms(drive) == [(2, FAR_ABOVE), (5, FAR_ABOVE)]


def test_norms_that_explode_raise_an_alarm() -> None:
    drive = begun()
    for norm in (2.0, 1.0, 9.0, 11.0, 12.0):
        both(drive, norm=norm, accuracy=0.5)
    assert alarms(drive) == [(3, NORMS_GROW)]


def test_a_metric_that_is_missing_raises_an_alarm_once() -> None:
    drive = begun()
    both(drive, accuracy=0.5, loss=1.0)
    both(drive, accuracy=0.1, loss=float("inf"))
    both(drive, accuracy=0.1)
    assert alarms(drive) == [(1, UNMEASURED)]


def test_what_fewer_than_half_of_the_devices_measured_does_not_count() -> None:
    drive = begun(target=0.9)
    play(drive, {"accuracy": 1.0}, {"accuracy": float("inf")})
    assert [state for state, _ in ends(drive)] == ["finished"], "half of them does"
    drive = Drive()
    drive.enrol("a", "b", "c")
    spec = job_spec(cohort=3, min_reports=3)
    drive.submit(replace(spec, evaluation=EvaluationSettings(target=0.9)))
    settle(drive)
    for device, evaluation in (("a", {"accuracy": 1.0}), ("b", {}), ("c", {})):
        drive.update(device)
        fold = drive.pending.pop(0)
        assert isinstance(fold, Fold)
        drive.step(measured(fold, evaluation))
        settle(drive)
    assert ends(drive) == []
    (evaluated,) = drive.recorded(VersionEvaluated)
    assert evaluated.metrics == {}


def test_an_alarm_ends_a_job_that_asks_for_it() -> None:
    drive = begun(alarm_factor=2.0, stop_on_divergence=True)
    for loss in (1.0, 3.0):
        both(drive, accuracy=0.5, loss=loss)
    assert ends(drive) == [("failed", "diverged: version 1, far-above")]


def test_every_kind_of_alarm_has_words() -> None:
    for words in ALARMS.values():
        assert words.format(value=1.5, bound=2.0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"dataset": "data/test.npz"}, "a path at the coordinator: give it from the root on"),
        ({"by": "central"}, "there is no evaluation.dataset"),
        ({"target": math.inf}, "no finite number"),
        ({"patience": -1}, "patience"),
        ({"metrics": "loss"}, "metrics"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_by_field(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(JobRefused, match=told):
        parse_job({"name": "job", "task": "vision", "evaluation": fields})
