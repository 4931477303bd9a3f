"""Who becomes a member: tokens, joins, the proof of the X25519 key, revocation. Pure."""

from __future__ import annotations

from coordinator import facts as f
from coordinator.effects import AnswerJoin, ShutOut
from coordinator.inputs import Invite, JoinAsked, Revoke
from coordinator.state import DeviceState, TokenRecord
from coordinator.turn import CommandRefused, Turn
from schemas.errors import Forged
from schemas.events import ChallengeAnswer, Enrolled, Revoked
from schemas.ids import key_id
from schemas.keys import Kind, verify


def invite(turn: Turn, command: Invite) -> None:
    """A token was made for a device; an earlier one that was not used yet is void.

    Raises `CommandRefused` if the device is a member.
    """
    device = turn.state.devices.get(command.device)
    if device and device.state is not DeviceState.REVOKED:
        raise CommandRefused(
            f"device {device.id} is enrolled already ({device.state}); "
            f"revoke it first with `fedbus-coordinator devices revoke {device.id}`, or choose another name"
        )
    turn.record(
        f.Invited(
            token=command.token,
            token_key=command.token_key,
            device=command.device,
            entity=command.entity,
            expires_wall_s=command.expires_wall_s,
        )
    )


def join(turn: Turn, asked: JoinAsked) -> None:
    """Spend the token, once. The same join again gets the same answer; another key is refused."""
    token = turn.state.tokens.get(asked.join.token)
    refused = _why_not(turn, asked, token)
    if refused or token is None:
        turn.order(AnswerJoin(asked.join, b"", "", refused))
        return
    if not token.join:
        turn.record(
            f.Joined(
                token=asked.join.token,
                join=asked.join.digest(),
                device=token.device,
                entity=token.entity,
                signing=asked.join.signing,
                box=asked.join.box,
                challenge=asked.challenge,
            )
        )
    device = turn.state.devices[token.device]
    turn.order(AnswerJoin(asked.join, device.challenge, device.entity, ""))


def _why_not(turn: Turn, asked: JoinAsked, token: TokenRecord | None) -> str:
    again = "ask the operator for a new one (`fedbus-coordinator invite`)"
    if token is None or token.device != asked.join.device:
        return f"this coordinator never made this token for device {asked.join.device}; {again}"
    try:
        verify(Kind.JOIN_TOKEN, token.key, asked.packed, asked.by_token)
    except Forged:
        return f"the join was not signed with the token's own key; {again}"
    if token.join and token.join != asked.join.digest():
        return f"the token for device {token.device} was used already, with other keys; {again}"
    if token.void:
        # Spent or not: neither its keys nor a second token made before may bring a revoked device back.
        return f"device {token.device} was revoked, or invited again, after this token was made; {again}"
    if token.join:
        return ""
    if turn.moment.wall_s > token.expires_wall_s:
        ago_min = (turn.moment.wall_s - token.expires_wall_s) / 60
        return f"the token for device {token.device} expired {ago_min:.0f} min ago; {again}"
    device = turn.state.devices.get(token.device)
    if device and device.state is not DeviceState.REVOKED:
        return f"device {token.device} is enrolled already, with another token; {again}"
    if owner := turn.state.by_sender.get(key_id(asked.join.signing)):
        # One key is one sender, once: with a new replay window, its old messages would be taken again.
        return f"these keys were enrolled before, as device {owner}; enrol from a fresh state directory"
    return ""


def prove(turn: Turn, device_id: str, answer: ChallengeAnswer) -> None:
    """The device returned its challenge: it owns the X25519 key, and is active."""
    device = turn.state.devices[device_id]
    if answer.challenge != device.challenge:
        return
    if device.state is DeviceState.JOINED:
        turn.record(f.Activated(device=device_id))
    turn.tell(device_id, Enrolled())


def revoke(turn: Turn, command: Revoke) -> None:
    """End a membership. Raises `CommandRefused` for an unknown device."""
    device = turn.state.devices.get(command.device)
    if device is None:
        raise CommandRefused(
            f"there is no device {command.device}; `fedbus-coordinator devices list` shows those there are"
        )
    if device.state is not DeviceState.REVOKED:
        turn.record(f.DeviceRevoked(device=device.id, reason=command.reason))
    turn.tell(device.id, Revoked(reason=command.reason))
    turn.order(ShutOut(device.id))
