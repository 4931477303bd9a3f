"""Devices whose updates were rejected again and again for what they held are left alone for some rounds.
Pure.

Only what a device sent counts: its norm, its samples, its form, numbers that are not finite. That an update
was late, or that its job ended, says nothing of it, and one that is folded ends the row.
"""

from __future__ import annotations

from coordinator import facts as f
from coordinator.inputs import Release
from coordinator.state import Job, Request, RequestState
from coordinator.turn import CommandRefused, Turn


def judge(turn: Turn, job: Job, request: Request) -> None:
    """After a verdict: has the row become too long?"""
    after, strikes = job.spec.quarantine_after, job.strikes.get(request.device, 0)
    if after and strikes >= after and request.state is RequestState.REJECTED:
        turn.record(
            f.DeviceQuarantined(
                job=job.id,
                device=request.device,
                until=request.counts_in + job.spec.quarantine_rounds,
                reason=request.reason,
            )
        )


def release(turn: Turn, command: Release) -> None:
    """End a device's quarantine in all jobs. Raises `CommandRefused` if it is in none."""
    if command.device not in turn.state.devices:
        raise CommandRefused(
            f"there is no device {command.device}; `fedbus-coordinator devices list` shows those there are"
        )
    if not any(job.quarantined(command.device) for job in turn.state.jobs.values()):
        raise CommandRefused(f"device {command.device} is in no job's quarantine")
    turn.record(f.DeviceReleased(device=command.device))
