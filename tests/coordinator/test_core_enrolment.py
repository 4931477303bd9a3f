"""Who becomes a member: every clause of the protocol's "Enrolment" that the core decides."""

from __future__ import annotations

import pytest

from coordinator.effects import ShutOut
from coordinator.facts import Activated, Joined
from coordinator.inputs import Revoke
from coordinator.state import DeviceState
from coordinator.turn import CommandRefused
from schemas.events import Accept, ChallengeAnswer, Enrolled, Refusal, Revoked
from tests.coordinator.drive import DAY_S, Drive, answer, ordered, status, told
from tests.schemas.parties import secret, signing

PRESS = "press-07"


@pytest.fixture
def drive() -> Drive:
    return Drive()


def state_of(drive: Drive, device: str = PRESS) -> DeviceState:
    return drive.state.devices[device].state


def test_a_device_is_active_only_after_it_answered_the_challenge(drive: Drive) -> None:
    welcome = answer(drive.join(drive.invite(PRESS), PRESS))
    assert (welcome.refused, welcome.entity) == ("", "acme")
    assert state_of(drive) is DeviceState.JOINED
    assert told(drive.say(PRESS, ChallengeAnswer(challenge=welcome.challenge))) == [(PRESS, Enrolled())]
    assert state_of(drive) is DeviceState.ACTIVE


def test_a_wrong_answer_to_the_challenge_changes_nothing(drive: Drive) -> None:
    drive.join(drive.invite(PRESS), PRESS)
    assert told(drive.say(PRESS, ChallengeAnswer(challenge=secret("guess")))) == []
    assert state_of(drive) is DeviceState.JOINED


def test_the_challenge_may_be_answered_again_and_activates_once(drive: Drive) -> None:
    drive.join(drive.invite(PRESS), PRESS)
    drive.prove(PRESS)
    assert told(drive.prove(PRESS)) == [(PRESS, Enrolled())]
    assert len(drive.recorded(Activated)) == 1


def test_before_it_is_active_a_device_is_told_what_is_missing(drive: Drive) -> None:
    drive.join(drive.invite(PRESS), PRESS)
    ((device, event),) = told(drive.say(PRESS, status()))
    assert device == PRESS
    assert isinstance(event, Refusal)
    assert "challenge" in event.text
    assert drive.state.devices[PRESS].status is None


def test_an_unknown_token_is_refused(drive: Drive) -> None:
    refused = answer(drive.join(secret("made up")[:16], PRESS))
    assert "never made" in refused.refused
    assert refused.challenge == b""
    assert drive.state.devices == {}


def test_a_token_for_another_device_is_refused(drive: Drive) -> None:
    assert "never made" in answer(drive.join(drive.invite("other"), PRESS)).refused
    assert drive.state.devices == {}


def test_a_join_that_the_tokens_key_did_not_sign_is_refused(drive: Drive) -> None:
    token = drive.invite(PRESS)
    assert "not signed" in answer(drive.join(token, PRESS, forged=True)).refused
    assert answer(drive.join(token, PRESS)).refused == "", "and leaves the token good"


def test_an_expired_token_is_refused_and_the_text_says_since_when(drive: Drive) -> None:
    token = drive.invite(PRESS, valid_s=60)
    drive.wall_s += 60 + 180
    assert "expired 3 min ago" in answer(drive.join(token, PRESS)).refused
    assert drive.state.devices == {}


def test_a_token_is_good_until_its_last_moment(drive: Drive) -> None:
    token = drive.invite(PRESS, valid_s=60)
    drive.wall_s += 60
    assert answer(drive.join(token, PRESS)).refused == ""


def test_the_same_join_gets_the_same_answer_however_often_and_late(drive: Drive) -> None:
    token = drive.invite(PRESS, valid_s=60)
    first = answer(drive.join(token, PRESS))
    assert answer(drive.join(token, PRESS)) == first, "the welcome was lost"
    drive.prove(PRESS)
    drive.wall_s += 30 * DAY_S
    assert answer(drive.join(token, PRESS)) == first, "a spent token expires no more"
    assert len(drive.recorded(Joined)) == 1
    assert state_of(drive) is DeviceState.ACTIVE


@pytest.mark.parametrize(("keys", "nonce"), [("thief", "nonce"), (PRESS, "another")])
def test_of_two_joins_with_one_token_the_first_wins(drive: Drive, keys: str, nonce: str) -> None:
    token = drive.invite(PRESS)
    first = answer(drive.join(token, PRESS))
    second = answer(drive.join(token, PRESS, keys=keys, nonce=nonce))
    assert "used already" in second.refused
    assert second.challenge == b""
    assert drive.state.devices[PRESS].signing == signing(PRESS).public
    assert answer(drive.join(token, PRESS)) == first


def test_of_two_tokens_for_one_device_only_the_newer_is_good(drive: Drive) -> None:
    one, two = drive.invite(PRESS), drive.invite(PRESS)
    assert "invited again" in answer(drive.join(one, PRESS, keys="thief")).refused
    assert answer(drive.join(two, PRESS)).refused == ""
    assert drive.state.devices[PRESS].signing == signing(PRESS).public


def test_after_a_restart_the_revoked_are_shut_out_again(drive: Drive) -> None:
    drive.enrol(PRESS)
    drive.revoke(PRESS)
    assert ordered(drive.restart(), ShutOut) == [ShutOut(PRESS)]


def test_after_a_restart_one_that_was_invited_again_is_not_shut_out(drive: Drive) -> None:
    drive.enrol(PRESS)
    drive.revoke(PRESS)
    drive.invite(PRESS)
    assert ordered(drive.restart(), ShutOut) == []


def test_a_member_is_not_invited_again(drive: Drive) -> None:
    drive.enrol(PRESS)
    with pytest.raises(CommandRefused, match=f"{PRESS} is enrolled already.*revoke {PRESS}"):
        drive.invite(PRESS)


def test_a_revoked_device_is_told_so_whatever_it_says_and_shut_out(drive: Drive) -> None:
    drive.enrol(PRESS)
    turn = drive.revoke(PRESS)
    assert told(turn) == [(PRESS, Revoked(reason="lost"))]
    assert ordered(turn, ShutOut) == [ShutOut(PRESS)]
    for event in (status("other"), Accept(job="job", request=1)):
        ((_, said),) = told(drive.say(PRESS, event))
        assert isinstance(said, Revoked)
    ((_, said),) = told(drive.prove(PRESS))
    assert isinstance(said, Revoked)
    assert state_of(drive) is DeviceState.REVOKED
    assert drive.state.devices[PRESS].status == status()


def test_a_revoked_device_does_not_get_its_welcome_again(drive: Drive) -> None:
    token = drive.invite(PRESS)
    drive.join(token, PRESS)
    drive.revoke(PRESS)
    assert "revoked" in answer(drive.join(token, PRESS)).refused


def test_a_second_token_from_before_the_revocation_brings_nobody_back(drive: Drive) -> None:
    kept, used = drive.invite(PRESS), drive.invite(PRESS)
    drive.join(used, PRESS)
    drive.revoke(PRESS)
    assert "revoked" in answer(drive.join(kept, PRESS, keys="second life")).refused
    assert state_of(drive) is DeviceState.REVOKED


def test_after_a_new_invitation_a_revoked_device_comes_back_with_new_keys_only(drive: Drive) -> None:
    old = drive.invite(PRESS)
    drive.join(old, PRESS)
    drive.prove(PRESS)
    drive.revoke(PRESS)
    new = drive.invite(PRESS)
    assert answer(drive.join(new, PRESS, keys="second life")).refused == ""
    drive.prove(PRESS)
    assert state_of(drive) is DeviceState.ACTIVE
    replayed = answer(drive.join(old, PRESS))
    assert "revoked" in replayed.refused, "the old keys would get a certificate again"
    assert replayed.challenge == b""


def test_messages_under_the_keys_of_an_earlier_life_are_no_longer_the_devices(drive: Drive) -> None:
    drive.enrol(PRESS)
    drive.revoke(PRESS)
    device = drive.state.devices[drive.state.by_sender[signing(PRESS).id]]
    assert device.signing == signing(PRESS).public, "it must still be told that it is revoked"
    drive.enrol(PRESS, keys="second life")
    device = drive.state.devices[drive.state.by_sender[signing(PRESS).id]]
    assert device.signing == signing("second life").public


@pytest.mark.parametrize("lives", [1, 2])
def test_a_revoked_key_never_comes_back(drive: Drive, lives: int) -> None:
    drive.enrol(PRESS)
    drive.revoke(PRESS)
    if lives == 2:
        drive.enrol(PRESS, keys="second life")
        drive.revoke(PRESS)
    refused = answer(drive.join(drive.invite(PRESS), PRESS)).refused
    assert f"enrolled before, as device {PRESS}" in refused, "its old messages would be taken again"
    assert state_of(drive) is DeviceState.REVOKED


def test_two_devices_cannot_have_one_key(drive: Drive) -> None:
    drive.enrol(PRESS)
    token = drive.invite("clone")
    assert f"as device {PRESS}" in answer(drive.join(token, "clone", keys=PRESS)).refused
    assert drive.state.by_sender == {signing(PRESS).id: PRESS}
    assert answer(drive.join(token, "clone")).refused == "", "and the token is still good"


def test_a_device_that_comes_back_starts_with_an_empty_replay_window(drive: Drive) -> None:
    drive.enrol(PRESS)
    assert drive.state.devices[PRESS].window.high == 1
    drive.revoke(PRESS)
    drive.join(drive.invite(PRESS), PRESS, keys="second life")
    assert drive.state.devices[PRESS].window.high == -1


def test_revoking_twice_is_one_revocation(drive: Drive) -> None:
    drive.enrol(PRESS)
    drive.revoke(PRESS)
    assert drive.revoke(PRESS).facts == []


def test_an_unknown_device_cannot_be_revoked(drive: Drive) -> None:
    with pytest.raises(CommandRefused, match="no device nobody"):
        drive.step(Revoke(device="nobody", reason=""))


@pytest.mark.parametrize("off_s", [-DAY_S, DAY_S])
def test_a_clock_that_is_a_day_off_changes_nothing_but_the_expiry_of_tokens(off_s: float) -> None:
    def life(drive: Drive, *, off_s: float) -> object:
        drive.enrol(PRESS)
        unused = drive.invite("late", valid_s=DAY_S / 2)
        drive.wall_s += off_s
        drive.say(PRESS, status("task", agent="0.2"))
        assert answer(drive.join(unused, "late")).refused.count("expired") == (off_s > 0)
        drive.tick(10)
        return drive.state.devices[PRESS]

    assert life(Drive(), off_s=off_s) == life(Drive(), off_s=0)
