"""Tokens and members that are not what they should be, at a running coordinator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from broker.system import system_ports
from coordinator.inputs import JoinAsked
from coordinator.state import DeviceState
from schemas import events as e
from schemas.enrolment import Token, open_welcome, seal_join, token_from_text
from schemas.envelope import new_clear, seal, sign
from schemas.errors import TokenRefused
from schemas.keys import SigningKey
from tests.coordinator.hostile import Case, case, told
from tests.standin import StandIn

SECOND_LIFE = "ask the operator for a new one (`fedbus-coordinator invite`)"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Case]:
    async with case(tmp_path / "c") as made:
        yield made


async def candidate(running: Case, token: Token) -> StandIn:
    """A device that is not enrolled yet, and is connected."""
    device = StandIn(token, running.fed.dial, system_ports(), running.fed.directory)
    return await device.__aenter__()


async def joins(running: Case) -> int:
    """How many joins the log holds."""
    await running.all_looked_at()
    return sum(isinstance(getattr(entry, "input", None), JoinAsked) for entry in running.log())


async def refusal(device: StandIn) -> str:
    with pytest.raises(TokenRefused) as refused:
        await device.enrol()
    return str(refused.value)


async def test_an_unknown_token_is_refused_with_the_remedy(running: Case) -> None:
    token = await running.fed.invite("new")
    before = await joins(running)
    forged = replace(token, id=bytes(16), seed=bytes(32))
    text = await refusal(await candidate(running, forged))
    assert text == f"this coordinator never made this token for device new; {SECOND_LIFE}"
    assert await joins(running) == before
    await (await candidate(running, token)).enrol()
    await running.honest_update_folds()


async def test_a_token_of_another_seed_is_refused(running: Case) -> None:
    token = await running.fed.invite("new")
    text = await refusal(await candidate(running, replace(token, seed=bytes(32))))
    assert text == f"the join was not signed with the token's own key; {SECOND_LIFE}"
    await (await candidate(running, token)).enrol()
    await running.honest_update_folds()


async def test_an_expired_token_is_refused_with_its_age_and_the_remedy(running: Case) -> None:
    made = await running.fed.command("invite", device="late", valid_s=-180.0)
    text = await refusal(await candidate(running, token_from_text(made["token"])))
    assert text == f"the token for device late expired 3 min ago; {SECOND_LIFE}"
    assert "late" not in running.fed.coordinator.ledger.state.devices
    await running.honest_update_folds()


async def test_a_token_reused_with_other_keys_is_refused_and_the_first_device_stays(running: Case) -> None:
    token = await running.fed.invite("new")
    first = await candidate(running, token)
    await first.enrol()
    await first.close()
    before = await joins(running)
    text = await refusal(await candidate(running, token))
    assert text == f"the token for device new was used already, with other keys; {SECOND_LIFE}"
    assert await joins(running) == before
    device = running.fed.coordinator.ledger.state.devices["new"]
    assert (device.state, device.signing) == (DeviceState.ACTIVE, first.key.public)
    await running.honest_update_folds()


async def test_after_a_lost_welcome_the_same_join_gets_the_same_answer(running: Case) -> None:
    device = await candidate(running, await running.fed.invite("new"))
    join = seal_join(device.join, device.token, device.key)
    answers = []
    for _ in range(3):
        await device.say_bytes(join)
        welcome = await device.hear()
        assert isinstance(welcome, bytes)
        answers.append(open_welcome(welcome, device.box, device.join))
    assert answers[0] == answers[1] == answers[2]
    assert await joins(running) == 3  # honest, rogue, and this one, once
    await device.enrol()
    await running.honest_update_folds()


async def test_of_two_keys_that_race_for_a_token_one_enrols_and_the_other_is_told(running: Case) -> None:
    token = await running.fed.invite("new")
    first = await candidate(running, token)
    second = await candidate(running, token)  # has taken over the session: it hears both answers
    for device in (first, second):
        await second.say_bytes(seal_join(device.join, token, device.key))
    won, lost = await second.hear(), await second.hear()
    assert isinstance(won, bytes)
    assert isinstance(lost, bytes)
    assert open_welcome(won, first.box, first.join).certificate.signing == first.key.public
    with pytest.raises(TokenRefused, match="was used already, with other keys"):
        open_welcome(lost, second.box, second.join)
    assert await joins(running) == 3
    await running.honest_update_folds()


async def test_a_message_of_an_unknown_device_is_refused_and_counted(running: Case) -> None:
    fed = running.fed
    device = await candidate(running, await fed.invite("new"))
    await device.mailbox.send(device.up, fed.identity.box.public, e.StateRequest(requests=[], key_set=1))
    await running.all_looked_at()
    assert running.dead("sender") == 1
    letter = running.letter()
    assert (letter.claimed, letter.text) == ("new", "no device of this federation has this key")
    assert running.heard_of(device) == []
    assert running.sent_to(device) == []
    assert fed.broker.queued("new") == 0
    await running.honest_update_folds()


async def test_a_join_for_another_federation_or_on_anothers_topic_is_refused(running: Case) -> None:
    token = await running.fed.invite("new")
    device = await candidate(running, token)
    elsewhere = replace(device.join, federation=bytes(16))
    before = await joins(running)
    await device.say_bytes(seal_join(elsewhere, token, device.key))
    await running.all_looked_at()
    assert (running.dead("recipient"), running.letter().text) == (1, "the join is for another federation")
    await running.rogue.say_bytes(seal_join(device.join, token, device.key))
    await running.all_looked_at()
    assert (running.dead("forged"), running.letter().claimed) == (1, "rogue")
    assert await joins(running) == before
    await device.enrol()
    await running.honest_update_folds()


async def test_a_revoked_device_is_told_so_and_its_later_update_is_rejected(running: Case) -> None:
    fed, rogue = running.fed, running.rogue
    request = await running.request(rogue)
    await fed.command("revoke", device="rogue", reason="stolen")
    assert (await told(rogue, e.Revoked)).reason == "stolen"
    await rogue.say(e.StateRequest(requests=[], key_set=1))
    assert (await told(rogue, e.Revoked)).reason == "this device is no longer a member"
    await rogue.offer(rogue.seal(request, *rogue.update(request, np.ones(10, np.float32)))[0])
    assert (await told(rogue, e.Receipt)).request == request.request
    verdict = await told(rogue, e.Verdict)
    assert (verdict.folded, verdict.reason) == (False, "the device was revoked")
    await running.honest_update_folds()
    await told(running.honest, e.JobFinished)
    assert fed.job("job").versions[-1].samples == 1


async def test_an_update_that_was_complete_before_the_revocation_folds(running: Case) -> None:
    rogue = running.rogue
    request = await running.request(rogue)
    await rogue.answer(request, np.ones(10, np.float32), samples=3)
    assert (await told(rogue, e.Receipt)).request == request.request
    await running.fed.command("revoke", device="rogue")
    assert (await told(rogue, e.Verdict)).folded
    await running.honest_update_folds()
    await told(running.honest, e.JobFinished)
    assert running.fed.job("job").versions[-1].samples == 4


async def test_a_message_with_a_bad_signature_is_refused_and_counted(running: Case) -> None:
    rogue = running.rogue
    assert rogue.member is not None
    request = await running.request(rogue)
    heard = len(running.heard_of(rogue))
    accept = e.Accept(job="job", request=request.request)
    good = rogue.mailbox.sign(rogue.mailbox.seal(rogue.member.key_set.box, accept))
    flipped = bytes([good.signature[0] ^ 1]) + good.signature[1:]
    await rogue.say_bytes(replace(good, signature=flipped).to_bytes())
    await rogue.say_bytes(replace(good, body=good.body[:-1] + bytes([good.body[-1] ^ 1])).to_bytes())
    await running.all_looked_at()
    assert running.dead("forged") == 2
    assert len(running.heard_of(rogue)) == heard
    await rogue.say_bytes(good.to_bytes())  # the number was not used up
    await running.all_looked_at()
    assert len(running.heard_of(rogue)) == heard + 1
    await running.honest_update_folds()


async def test_a_message_to_another_reader_or_federation_is_answered_with_its_code(running: Case) -> None:
    fed, rogue = running.fed, running.rogue
    status = e.encode_event(e.StateRequest(requests=[], key_set=1))
    stranger = SigningKey.from_seed(bytes(32))
    heard = len(running.heard_of(rogue))
    moved = new_clear(bytes(16), rogue.key.public, fed.identity.box.public)
    await rogue.offer(seal(moved, bytes(32), fed.identity.box.public, status))
    await running.all_looked_at()
    assert running.letter().text == "the message belongs to another federation"
    to_nobody = new_clear(fed.identity.federation, rogue.key.public, rogue.box.public)
    envelope = await rogue.offer(seal(to_nobody, bytes(range(32)), rogue.box.public, status))
    refused = await told(rogue, e.Refusal)
    assert (refused.code, refused.transfer) == ("closed", envelope.transfer)
    assert refused.text == "no open request of this device has this key"
    in_another_name = new_clear(fed.identity.federation, stranger.public, fed.identity.box.public)
    sealed = seal(in_another_name, bytes(32), fed.identity.box.public, status)
    await rogue.say_bytes(sign(sealed, rogue.key, rogue.mailbox.sequencer.next()).to_bytes())
    await running.all_looked_at()
    assert (running.dead("recipient"), running.dead("sender")) == (2, 1)
    assert len(running.heard_of(rogue)) == heard
    await running.honest_update_folds()
