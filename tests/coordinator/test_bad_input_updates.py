"""Updates that are not what was asked for: each is rejected by name, and the honest device's still folds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from schemas import events as e
from schemas.envelope import new_clear, seal
from schemas.ids import key_id
from schemas.models import DELTA
from tests.coordinator.hostile import Case, case, told

COUNT = 10


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Case]:
    async with case(tmp_path / "c", count=COUNT) as made:
        yield made


def filled(value: float, count: int = COUNT) -> NDArray[np.float32]:
    delta = np.ones(count, np.float32)
    delta[-1] = value
    return delta


@dataclass(frozen=True)
class Bad:
    """An update with one fault, and how its verdict begins."""

    verdict: str
    delta: NDArray[np.float32] = field(default_factory=lambda: filled(1.0))
    samples: int = 1
    changed: dict[str, Any] = field(default_factory=dict)


BAD = {
    "another job": Bad("job: sealed for request 1 of job other", changed={"job": "other"}),
    "another request": Bad("job: sealed for request 7 of job job", changed={"request": 7}),
    "another base version": Bad("base: trained on another model version", changed={"base": bytes(32)}),
    "another layout": Bad("layout: the vectors are not", changed={"vectors": [e.Vector(DELTA, 9)]}),
    "a vector of another name": Bad("layout: the vectors are not", changed={"vectors": [e.Vector("w", 10)]}),
    "NaN": Bad("finite: the update holds NaN", filled(np.nan)),
    "infinity": Bad("finite: the update holds NaN", filled(np.inf)),
    "too few bytes": Bad(
        "length: 36 bytes where 40 belong", filled(1.0, 9), changed={"vectors": [e.Vector(DELTA, COUNT)]}
    ),
    "a huge norm": Bad("norm: 1e+06 exceeds the job's update_norm_max 1000", filled(1e6)),
    "a norm beyond float32": Bad("finite: the update holds NaN", filled(1e30)),
    "too many samples": Bad("samples: 10000001 exceed the job's samples_max 10000000", samples=10_000_001),
}


@pytest.mark.parametrize("fault", BAD)
async def test_an_unfit_update_is_receipted_and_rejected_by_name(running: Case, fault: str) -> None:
    bad, rogue = BAD[fault], running.rogue
    request = await running.request(rogue)
    update, content = rogue.update(request, bad.delta, bad.samples)
    await rogue.offer(rogue.seal(request, replace(update, **bad.changed), content)[0])
    assert (await told(rogue, e.Receipt)).request == request.request
    verdict = await told(rogue, e.Verdict)
    assert not verdict.folded
    assert verdict.reason.startswith(bad.verdict)
    await running.honest_update_folds()
    await told(running.honest, e.JobFinished)
    assert running.fed.job("job").versions[-1].samples == 1


async def test_a_document_that_is_no_update_is_rejected_by_name(running: Case) -> None:
    rogue = running.rogue
    request = await running.request(rogue)
    clear = new_clear(rogue.federation, rogue.key.public, request.update_key)
    await rogue.offer(seal(clear, bytes(32), request.update_key, e.encode_event(e.ChunkPull(bytes(16), [0]))))
    assert (await told(rogue, e.Verdict)).reason == "type: the sealed document is no update"
    await running.honest_update_folds()


async def test_a_chunked_update_of_another_size_is_refused_at_the_offer(running: Case) -> None:
    rogue = running.rogue
    request = await running.request(rogue)
    update, content = rogue.update(request, np.ones(3_000, np.float32))
    sealed, _ = rogue.seal(request, update, content, chunk_bytes=4_096)
    envelope = await rogue.offer(sealed)
    refused = await told(rogue, e.Refusal)
    assert (refused.code, refused.transfer) == ("layout", envelope.transfer)
    assert refused.text == "an update of 12000 bytes where the layout has 40"
    assert running.dead("layout") == 1
    assert running.spools() == []
    await running.honest_update_folds()


async def test_an_update_sealed_to_the_coordinators_own_key_is_refused(running: Case) -> None:
    rogue = running.rogue
    request = await running.request(rogue)
    update, content = rogue.update(request, filled(1.0))
    box = running.fed.identity.box.public
    whole = replace(update, inline=content)
    clear = new_clear(rogue.federation, rogue.key.public, box)
    await rogue.offer(seal(clear, bytes(32), box, e.encode_event(whole)))
    refused = await told(rogue, e.Refusal)
    assert (refused.code, refused.text) == ("recipient", "an update must be sealed to the key of its request")
    await running.honest_update_folds()


async def test_a_foreign_ciphertext_signed_again_is_refused_and_its_owners_update_folds(
    running: Case,
) -> None:
    honest, rogue = running.honest, running.rogue
    request = await running.request(honest)
    sealed, _ = honest.seal(request, *honest.update(request, filled(1.0), samples=5))
    heard = len(running.heard_of(rogue))
    await rogue.offer(sealed)  # the header names the honest device, the signature is another's
    in_own_name = replace(sealed, clear=new_clear(rogue.federation, rogue.key.public, request.update_key))
    envelope = await rogue.offer(in_own_name)
    refused = await told(rogue, e.Refusal)
    assert (refused.code, refused.transfer) == ("closed", envelope.transfer)
    # To the rogue's own request, with the key sealed in it left as it was: nothing in it opens.
    own = await running.request(rogue)
    await rogue.offer(replace(sealed, clear=new_clear(rogue.federation, rogue.key.public, own.update_key)))
    assert (await told(rogue, e.Verdict)).reason.startswith("forged: ")
    assert (running.dead("forged"), running.dead("recipient")) == (1, 1)
    assert len(running.heard_of(rogue)) == heard + 1
    await honest.offer(sealed)
    assert (await told(honest, e.Receipt)).digest == sealed.seal.body
    assert (await told(honest, e.Verdict)).folded
    await told(honest, e.JobFinished)
    assert running.fed.job("job").versions[-1].samples == 5


async def test_an_identical_envelope_is_answered_again_and_taken_once(running: Case) -> None:
    rogue = running.rogue
    request = await running.request(rogue)
    envelope = await rogue.offer(rogue.seal(request, *rogue.update(request, filled(1.0), samples=3))[0])
    receipt, verdict = await told(rogue, e.Receipt), await told(rogue, e.Verdict)
    heard = len(running.heard_of(rogue))
    for _ in range(5):
        await rogue.say_bytes(envelope.to_bytes())
        again = await told(rogue, e.Receipt)
        assert (again.request, again.digest) == (receipt.request, receipt.digest)
        assert await told(rogue, e.Verdict) == verdict
    await running.all_looked_at()
    assert len(running.heard_of(rogue)) == heard
    await running.honest_update_folds()
    await told(running.honest, e.JobFinished)
    assert running.fed.job("job").versions[-1].samples == 4


async def test_of_two_digests_under_one_id_the_first_wins_and_every_receipt_names_it(running: Case) -> None:
    rogue = running.rogue
    request = await running.request(rogue)
    first, _ = rogue.seal(request, *rogue.update(request, filled(1.0), samples=3))
    second, _ = rogue.seal(request, *rogue.update(request, filled(2.0), samples=30))
    await rogue.offer(first)
    assert (await told(rogue, e.Receipt)).digest == first.seal.body
    await rogue.offer(second)
    assert (await told(rogue, e.Receipt)).digest == first.seal.body
    await running.honest_update_folds()
    await told(running.honest, e.JobFinished)
    assert running.fed.job("job").versions[-1].samples == 4


async def test_a_late_update_is_receipted_and_rejected_as_late(tmp_path: Path) -> None:
    async with case(tmp_path / "c", cohort=1, over_selection=2.0, rounds=2) as running:
        rogue = running.rogue
        request = await running.request(rogue)
        await running.honest_update_folds()
        await running.fed.until(lambda: running.fed.job("job").rounds_done == 1)
        await rogue.answer(request, filled(1.0))
        receipt = await told(rogue, e.Receipt)
        assert receipt.request == request.request
        verdict = await told(rogue, e.Verdict)
        assert (verdict.folded, verdict.reason) == (False, "late: round 1 was closed")
        running.asked.clear()
        await running.honest_update_folds()


async def test_an_update_for_a_cancelled_job_is_receipted_and_rejected(running: Case) -> None:
    rogue = running.rogue
    request = await running.request(rogue)
    await running.request(running.honest)
    await running.fed.command("cancel", job="job")
    await told(rogue, e.JobFinished)
    await rogue.answer(request, filled(1.0))
    assert (await told(rogue, e.Receipt)).request == request.request
    verdict = await told(rogue, e.Verdict)
    assert (verdict.folded, verdict.reason) == (False, "late: the job was cancelled")
    await running.fed.command("submit", spec={"name": "next", "task": request.task, "rounds": 1, "cohort": 2})
    running.asked.clear()
    assert (await running.request(running.honest)).job == "next"
    await running.honest_update_folds()


async def test_an_update_to_a_key_that_nobody_was_given_is_refused_as_closed(running: Case) -> None:
    rogue = running.rogue
    request = await running.request(rogue)
    strange = running.fed.identity.enrolment.public
    elsewhere = replace(request, update_key=strange)
    sealed, _ = rogue.seal(elsewhere, *rogue.update(request, filled(1.0)))
    envelope = await rogue.offer(sealed)
    assert envelope.clear.recipient == key_id(strange)
    refused = await told(rogue, e.Refusal)
    assert (refused.code, refused.transfer) == ("closed", envelope.transfer)
    await running.honest_update_folds()
