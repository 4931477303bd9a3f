"""Bytes that are no message, and chunks that fit nothing: refused, counted, and without effect on others."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from msgspec.structs import replace

from coordinator.dead_letters import RING_LETTERS_MAX
from schemas import chunks, enrolment, envelope
from schemas import events as e
from schemas.chunks import pack_chunk
from schemas.codec import pack
from schemas.envelope import MAGIC, PREFIX
from schemas.keys import Kind
from schemas.limits import CHUNK_BYTES_MIN, HEADER_BYTES_MAX, MESSAGE_BYTES_MAX, PROTOCOL_VERSION
from schemas.sealing import INNER_INDEX, aead_seal, derive, seal_key
from tests.coordinator.hostile import CHUNKED_COUNT, Case, case, offered, told


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Case]:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as made:
        yield made


def garbage(whole: bytes, rng: random.Random) -> Iterator[bytes]:
    """Random bytes behind every magic, and a whole message cut, changed and prolonged."""
    magics = (b"", MAGIC, chunks.MAGIC, enrolment.JOIN_MAGIC, enrolment.WELCOME_MAGIC)
    for magic in magics:
        for size in (0, 1, 2, 5, 19, 20, 40, 300, 5_000):
            yield magic + rng.randbytes(size)
    for _ in range(100):
        yield whole[: rng.randrange(len(whole))]
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
    yield whole + bytes(1)
    yield PREFIX.pack(MAGIC, HEADER_BYTES_MAX + 1) + bytes(2 * HEADER_BYTES_MAX)
    yield PREFIX.pack(MAGIC, 65_535) + bytes(70_000)
    yield MAGIC + bytes(MESSAGE_BYTES_MAX)
    yield chunks.MAGIC + bytes(MESSAGE_BYTES_MAX - 4)
    yield enrolment.JOIN_MAGIC + bytes(MESSAGE_BYTES_MAX - 4)


async def test_garbage_on_a_device_topic_changes_nothing_and_is_counted(running: Case) -> None:
    rogue = running.rogue
    assert rogue.member is not None
    heard = len(running.heard_of(rogue))
    answer = e.ChallengeAnswer(challenge=rogue.member.challenge)
    whole = rogue.mailbox.sign(rogue.mailbox.seal(rogue.member.key_set.box, answer)).to_bytes()
    sent = 0
    for data in garbage(whole, random.Random(1)):
        await rogue.say_bytes(data)
        sent += 1
    await running.all_looked_at()
    dead = running.fed.coordinator.intake.dead
    assert sum(dead.counts.values()) == sent
    assert set(dead.counts) <= {"malformed", "forged", "version", "sender", "orphan", "key"}
    assert len(running.heard_of(rogue)) == heard
    await rogue.say_bytes(whole)
    await running.all_looked_at()
    assert len(running.heard_of(rogue)) == heard + 1
    await running.honest_update_folds(count=CHUNKED_COUNT)


async def test_a_dead_letter_is_small_whatever_its_sender_chose(running: Case) -> None:
    await running.rogue.bus.publish(running.rogue.up + "x" * 60_000, b"")
    await running.all_looked_at()
    letter = running.letter()
    assert letter.code == "malformed"
    assert max(len(letter.topic), len(letter.claimed), len(letter.text)) <= 500
    await running.honest_update_folds(count=CHUNKED_COUNT)


async def test_a_message_of_a_future_version_is_answered_with_both_versions(running: Case) -> None:
    rogue = running.rogue
    assert rogue.member is not None
    sealed = rogue.mailbox.seal(rogue.member.key_set.box, e.StateRequest(requests=[], key_set=1))
    later = replace(sealed, clear=envelope.Clear(PROTOCOL_VERSION + 1, *_rest(sealed.clear)))
    await rogue.offer(later)
    refused = await told(rogue, e.Refusal)
    assert refused.code == "version"
    assert "of protocol version 2" in refused.text
    assert "speaks version 1" in refused.text
    assert "update the older side" in refused.text
    await rogue.say_bytes(PREFIX.pack(MAGIC, 5) + pack([[9, "x"]]) + bytes(64))  # with another form, too
    await running.all_looked_at()
    assert running.dead("version") == 2
    assert "version 9" in running.letter().text
    await running.honest_update_folds(count=CHUNKED_COUNT)


def _rest(clear: envelope.Clear) -> tuple[int, bytes, bytes, bytes]:
    return clear.suite, clear.federation, clear.sender, clear.recipient


async def test_a_header_that_is_not_canonical_is_refused_though_well_signed(running: Case) -> None:
    rogue = running.rogue
    assert rogue.member is not None
    heard = len(running.heard_of(rogue))
    good = rogue.mailbox.sign(rogue.mailbox.seal(rogue.member.key_set.box, e.StateRequest([], 1)))
    assert good.header_bytes[-1] == good.order.seq < 128
    longer = good.header_bytes[:-1] + bytes([0xCC, good.order.seq])  # the same number in two bytes
    signature = rogue.key.sign(Kind.ENVELOPE, longer)
    await rogue.say_bytes(replace(good, header_bytes=longer, signature=signature).to_bytes())
    await running.all_looked_at()
    assert running.dead("malformed") == 1
    assert "canonical" in running.letter().text
    assert len(running.heard_of(rogue)) == heard
    await running.honest_update_folds(count=CHUNKED_COUNT)


async def test_a_message_with_content_that_is_no_update_is_refused(running: Case) -> None:
    rogue, box = running.rogue, running.fed.identity.box.public
    clear = envelope.new_clear(rogue.federation, rogue.key.public, box, 12_000, CHUNK_BYTES_MIN)
    event = e.encode_event(e.StateRequest([], 1))
    sent = await rogue.offer(envelope.seal(clear, bytes(32), box, event, (bytes(32),) * 3))
    refused = await told(rogue, e.Refusal)
    assert (refused.code, refused.transfer) == ("malformed", sent.transfer)
    assert refused.text == "only an update has content in chunks"
    await running.honest_update_folds(count=CHUNKED_COUNT)


async def test_other_bytes_under_a_chunks_index_are_refused_and_the_upload_completes(
    running: Case,
) -> None:
    offer = await offered(running, running.rogue)
    first, second, last = offer.chunks
    for index, sealed, code in (
        (0, second, "forged"),  # swapped
        (0, last, "malformed"),  # swapped, and of another length
        (0, first[:-1], "malformed"),  # truncated
        (0, bytes(len(first)), "forged"),  # conflicting
        (3, first, "malformed"),  # beyond the last
    ):
        before = running.dead(code)
        await offer.send_as(index, sealed)
        await running.all_looked_at()
        assert running.dead(code) == before + 1
    await offer.send(0)
    await offer.send_as(0, bytes(len(first)))  # conflicting, after the right one
    await offer.send(0, 2, 1)  # the first once more
    assert (await told(running.rogue, e.Receipt)).digest == offer.envelope.digest
    assert (await told(running.rogue, e.Verdict)).folded
    assert (running.dead("forged"), running.dead("malformed")) == (3, 3)
    assert running.spools() == []
    await running.honest_update_folds(count=CHUNKED_COUNT)


async def test_a_chunk_of_another_devices_transfer_is_dropped_and_both_complete(running: Case) -> None:
    theirs = await offered(running, running.honest)
    ours = await offered(running, running.rogue)
    await running.rogue.say_bytes(pack_chunk(theirs.envelope.transfer, 0, theirs.chunks[0]))
    await running.all_looked_at()
    assert running.dead("orphan") == 1
    for offer in (theirs, ours):
        await offer.send(0, 1, 2)
        assert (await told(offer.device, e.Verdict)).folded


async def test_a_flood_of_chunks_of_no_transfer_is_dropped_and_counted(running: Case) -> None:
    offer = await offered(running, running.honest)
    heard = len(running.heard_of(running.rogue))
    rng = random.Random(2)
    for _ in range(10_000):
        await running.rogue.say_bytes(pack_chunk(rng.randbytes(16), rng.randrange(9), bytes(64)))
    await running.all_looked_at()
    assert running.dead("orphan") == 10_000
    assert len(running.fed.coordinator.intake.dead.ring) == RING_LETTERS_MAX
    assert len(running.spools()) == 1  # the honest device's
    assert len(running.heard_of(running.rogue)) == heard
    await offer.send(0, 1, 2)
    assert (await told(running.honest, e.Verdict)).folded


async def test_a_message_that_is_padded_without_need_or_measure_is_refused(running: Case) -> None:
    rogue = running.rogue
    assert rogue.member is not None
    box = rogue.member.key_set.box
    inner = e.encode_event(e.Accept(job="job", request=99))
    clear = envelope.new_clear(rogue.federation, rogue.key.public, box)
    key, context = envelope.content_key(bytes(32), clear)
    for size in (512, 200_000):
        padded = (envelope.LENGTH.pack(len(inner)) + inner).ljust(size, b"\0")
        body = aead_seal(key, INNER_INDEX, 0, padded, context)
        seal = envelope.Seal(
            seal_key(bytes(32), box), derive(bytes(32), b"fb1.commit", context), sha256(body).digest()
        )
        await rogue.offer(envelope.Sealed(clear, seal, body))
    await running.all_looked_at()
    assert running.dead("forged") == 1
    assert running.dead("malformed") == 1
    assert len(running.log()) < 100
    await running.honest_update_folds(count=CHUNKED_COUNT)
