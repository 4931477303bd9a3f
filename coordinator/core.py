"""The deterministic core: ``step(state, moment, input)`` decides; it reads no clock and does no I/O.

`step` changes ``state`` through facts only and returns them with the effects that they order. Reading the
log again means applying the recorded facts (`recover`), not deciding again: `BEHAVIOUR` is recorded with
every turn, so that a verification knows which core decided it.
"""

from __future__ import annotations

from coordinator import asking, enrolment, facts, quarantine, receipts, rounds
from coordinator.effects import SendChunks
from coordinator.inputs import (
    AnyInput,
    Cancel,
    Checked,
    Committed,
    DeviceSaid,
    Evaluated,
    Invite,
    JoinAsked,
    Moment,
    Prepared,
    Release,
    Revoke,
    Started,
    Submit,
    Ticked,
    UpdateCompleted,
    WorkFailed,
)
from coordinator.state import DeviceState, State
from coordinator.turn import Turn
from schemas import events as e
from schemas.ids import key_id

BEHAVIOUR = 3


def step(state: State, moment: Moment, input_: AnyInput) -> Turn:
    """Decide about one input. Raises `CommandRefused` (nothing changed) for an operator's command only."""
    turn = Turn(state, moment)
    match input_:
        case DeviceSaid():
            _heard(turn, input_.device, input_.order.incarnation, input_.order.seq)
            _device_said(turn, input_.device, input_.event)
        case UpdateCompleted():
            # Written while its device enrolled anew, it counts under the old keys, not in the new window.
            if key_id(state.devices[input_.device].signing) == input_.sender:
                _heard(turn, input_.device, input_.order.incarnation, input_.order.seq)
            receipts.received(turn, input_)
        case JoinAsked():
            enrolment.join(turn, input_)
        case Invite():
            enrolment.invite(turn, input_)
        case Revoke():
            enrolment.revoke(turn, input_)
            rounds.advance_all(turn)
        case Release():
            quarantine.release(turn, input_)
            rounds.advance_all(turn)
        case Submit():
            rounds.submit(turn, input_)
        case Cancel():
            rounds.cancel(turn, input_)
        case Prepared():
            asking.issue(turn, input_)
            rounds.advance(turn, turn.state.jobs[input_.job])
        case Checked():
            receipts.judge(turn, input_)
        case Committed():
            rounds.commit(turn, input_)
        case Evaluated():
            rounds.evaluated(turn, input_)
        case WorkFailed():
            rounds.fail(turn, input_)
        case Ticked():
            rounds.advance_all(turn)
        case Started():
            rounds.resume(turn)
    return turn


def _heard(turn: Turn, device: str, incarnation: int, seq: int) -> None:
    turn.record(facts.Heard(device=device, incarnation=incarnation, seq=seq))


def _device_said(turn: Turn, device_id: str, event: e.FromDevice) -> None:
    device = turn.state.devices[device_id]
    if device.state is DeviceState.REVOKED:
        turn.tell(device_id, e.Revoked(reason="this device is no longer a member"))
        return
    if isinstance(event, e.ChallengeAnswer):
        enrolment.prove(turn, device_id, event)
        return
    if device.state is not DeviceState.ACTIVE:
        turn.tell(device_id, e.Refusal(code="sender", text="enrolment is not complete: answer the challenge"))
        return
    match event:
        case e.DeviceStatus():
            # An equal one lets jobs ask again, too, that it had declined: its owner may have mended it.
            declined = any(device_id in job.unfit for job in turn.state.jobs.values())
            if event != device.status or declined:
                turn.record(facts.StatusChanged(device=device_id, status=event))
            rounds.advance_all(turn)
        case e.StateRequest():
            receipts.tell_state(turn, device_id, event)
        case e.Accept():
            receipts.accept(turn, device_id, event)
        case e.Decline():
            receipts.decline(turn, device_id, event)
        case e.ChunkPull():
            turn.order(SendChunks(device_id, event.transfer, tuple(event.chunks)))
        case e.ModelRequest():
            rounds.offer_newest(turn, device_id, event.job)
        case e.Update() | e.Refusal():
            pass  # updates come as UpdateCompleted; a refusal is for people, in the log
