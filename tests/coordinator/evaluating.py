"""Drives a job that is evaluated: what devices and coordinator measure is in the test's hand."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from coordinator.effects import Fold
from coordinator.facts import AlarmRaised, JobEnded
from coordinator.inputs import Checked, Evaluated
from coordinator.turn import Turn
from schemas.jobs import EvaluationSettings
from tests.coordinator.drive import Drive, checked, job_spec

PATH = "/srv/test.npz"
DEVICES = ("a", "b")


def begun(rounds: int = 20, **fields: Any) -> Drive:
    """A job that is evaluated, with the requests of its first round issued."""
    drive = Drive()
    drive.enrol(*DEVICES)
    spec = job_spec(rounds=rounds, cohort=len(DEVICES), min_reports=len(DEVICES))
    drive.submit(replace(spec, evaluation=EvaluationSettings(**fields)))
    settle(drive)
    return drive


def settle(drive: Drive) -> None:
    """Ordered work but folds; they are told of in `play`."""
    while drive.pending and not isinstance(drive.pending[0], Fold):
        outcome = drive.work(drive.pending.pop(0))
        if outcome is not None:
            drive.step(outcome)


def play(drive: Drive, *told: dict[str, float], norm: float = 1.0) -> None:
    """A round: each device measures this of the version that it is given."""
    for device, evaluation in zip(DEVICES, told, strict=True):
        drive.update(device)
        fold = drive.pending.pop(0)
        assert isinstance(fold, Fold)
        drive.step(measured(fold, evaluation, norm))
        settle(drive)


def measured(fold: Fold, evaluation: dict[str, float], norm: float = 1.0) -> Checked:
    return replace(checked(fold, norm=norm), evaluation=evaluation)


def both(drive: Drive, norm: float = 1.0, **metrics: float) -> None:
    play(drive, metrics, metrics, norm=norm)


def central(drive: Drive, version: int, problem: str = "", **metrics: float) -> Turn:
    turn = drive.step(Evaluated(job="job", version=version, metrics=metrics, problem=problem))
    settle(drive)
    return turn


def alarms(drive: Drive) -> list[tuple[int, str]]:
    return [(fact.version, fact.kind) for fact in drive.recorded(AlarmRaised)]


def ends(drive: Drive) -> list[tuple[str, str]]:
    return [(fact.state, fact.reason) for fact in drive.recorded(JobEnded)]
