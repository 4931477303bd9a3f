"""Old messages, copies of devices, kills, wrong clocks, and state directories that are not ours."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from broker.journal import JournalForeign
from broker.system import system_ports
from coordinator.config import Config
from coordinator.ledger import Ledger
from coordinator.recovery import FOLDER
from coordinator.setup import init
from coordinator.state import RequestState
from schemas import events as e
from schemas.envelope import Order
from schemas.limits import REPLAY_WINDOW
from tests.coordinator.hostile import CHUNKED_COUNT, Case, case, offered, told

DAY_S = 86_400.0


class ShiftedClock:
    """The system's, with people's time off by ``off_s``, which may change."""

    def __init__(self) -> None:
        self.off_s = 0.0
        self._clock = system_ports().clock

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()

    def wall_s(self) -> float:
        return self._clock.wall_s() + self.off_s


@asynccontextmanager
async def killed_and_restarted(running: Case) -> AsyncIterator[None]:
    """The coordinator ends without a word to anybody; another one reads its log."""
    async with asyncio.TaskGroup() as tasks:
        await running.fed.restart(tasks)
        try:
            yield
        finally:
            await running.fed.stop()


async def test_below_the_window_a_device_learns_the_height_and_signs_the_same_again(tmp_path: Path) -> None:
    async with case(tmp_path / "c") as running:
        rogue = running.rogue
        request = await running.request(rogue)
        sealed, _ = rogue.seal(request, *rogue.update(request, np.ones(10, np.float32)))
        early = rogue.mailbox.sequencer.next()
        high = early.seq + REPLAY_WINDOW
        rogue.mailbox.sequencer.skip_beyond(high - 1)
        await rogue.say(e.Accept(job="job", request=request.request))
        envelope = await rogue.offer(sealed, early)
        stale = await told(rogue, e.Stale)
        assert (stale.high, stale.transfer) == (high, envelope.transfer)
        assert running.dead("stale") == 1
        assert running.fed.job("job").requests["rogue", 1].state is RequestState.ACCEPTED
        await rogue.offer(sealed)
        assert (await told(rogue, e.Receipt)).digest == envelope.digest
        assert (await told(rogue, e.Verdict)).folded
        await running.honest_update_folds()


async def test_a_message_replayed_after_kill_9_is_refused(tmp_path: Path) -> None:
    async with case(tmp_path / "c") as running:
        rogue = running.rogue
        assert rogue.member is not None
        request = await running.request(rogue)
        accept = await rogue.say(e.Accept(job="job", request=request.request))
        update = await rogue.offer(rogue.seal(request, *rogue.update(request, np.ones(10, np.float32), 3))[0])
        receipt, verdict = await told(rogue, e.Receipt), await told(rogue, e.Verdict)
        heard = len(running.heard_of(rogue))
        async with killed_and_restarted(running):
            await rogue.say_bytes(accept.to_bytes())
            await rogue.say_bytes(update.to_bytes())
            assert (await told(rogue, e.Receipt)).digest == receipt.digest
            assert await told(rogue, e.Verdict) == verdict
            await running.all_looked_at()
            assert running.dead("replayed") == 1
            assert running.letter().text == f"message {accept.order.seq} was seen before"
            assert len(running.heard_of(rogue)) == heard
            await running.honest_update_folds()
            await told(running.honest, e.JobFinished)
            assert running.fed.job("job").versions[-1].samples == 4


async def test_a_chunked_update_cut_off_by_kill_9_is_gone_on_with_and_counted_once(tmp_path: Path) -> None:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as running:
        offer = await offered(running, running.rogue)
        await offer.send(1)
        await running.all_looked_at()
        async with killed_and_restarted(running):
            await offer.again()
            grant = await told(running.rogue, e.Grant)
            assert grant.chunks == [0, 2]
            await offer.send(0, 2)
            assert (await told(running.rogue, e.Receipt)).digest == offer.envelope.digest
            await running.honest_update_folds(count=CHUNKED_COUNT)
            await told(running.honest, e.JobFinished)
            assert running.fed.job("job").versions[-1].samples == 2


async def test_a_clone_from_an_older_copy_is_refused_once_the_device_has_recovered(tmp_path: Path) -> None:
    async with case(tmp_path / "c") as running:
        rogue = running.rogue
        assert rogue.member is not None
        request = await running.request(rogue)
        sealed = rogue.mailbox.seal(rogue.member.key_set.box, e.Accept(job="job", request=request.request))
        await rogue.offer(sealed, Order(1, 0))
        await running.all_looked_at()
        heard = len(running.heard_of(rogue))
        await rogue.offer(sealed, Order(0, 10**6))
        await rogue.offer(sealed, Order(1, 0))
        update, _ = rogue.seal(request, *rogue.update(request, np.ones(10, np.float32)))
        await rogue.offer(update, Order(0, 10**6 + 1))
        await running.all_looked_at()
        assert running.dead("replayed") == 3
        assert "it runs from an old copy of its state" in running.letter().text
        assert len(running.heard_of(rogue)) == heard
        assert running.fed.job("job").requests["rogue", 1].digest == b""
        await running.honest_update_folds()


@pytest.mark.parametrize("off_s", [-DAY_S, DAY_S])
async def test_an_update_is_counted_once_with_the_clock_a_day_off(tmp_path: Path, off_s: float) -> None:
    clock = ShiftedClock()
    async with case(tmp_path / "c", ports=replace(system_ports(), clock=clock)) as running:
        rogue = running.rogue
        request = await running.request(rogue)
        sealed, _ = rogue.seal(request, *rogue.update(request, np.ones(10, np.float32), samples=3))
        clock.off_s = off_s
        await running.fed.coordinator.ledger.tick()
        round_ = running.fed.job("job").round
        assert (round_.closed, len(round_.requests)) == (False, 2)  # no deadline moved
        envelope = await rogue.offer(sealed)
        receipt = await told(rogue, e.Receipt)
        async with killed_and_restarted(running):
            clock.off_s = -off_s
            await rogue.say_bytes(envelope.to_bytes())
            await rogue.offer(sealed)
            for _ in range(2):
                assert (await told(rogue, e.Receipt)).digest == receipt.digest
            await running.honest_update_folds()
            await told(running.honest, e.JobFinished)
            assert running.fed.job("job").versions[-1].samples == 4


def test_a_state_directory_of_another_federation_is_refused_naming_both(tmp_path: Path) -> None:
    ports = system_ports()
    ours = init(ports, tmp_path / "ours", Config(broker="memory:test")).federation
    theirs = init(ports, tmp_path / "theirs", Config(broker="memory:test")).federation
    Ledger.open(ports.files, tmp_path / "theirs", theirs, ports.clock).journal.close()
    shutil.copytree(tmp_path / "theirs" / FOLDER, tmp_path / "ours" / FOLDER)
    before = {path: path.read_bytes() for path in (tmp_path / "ours" / FOLDER).iterdir()}
    with pytest.raises(JournalForeign) as refused:
        Ledger.open(ports.files, tmp_path / "ours", ours, ports.clock)
    for words in (ours.hex(), theirs.hex(), str(tmp_path / "ours")):
        assert words in str(refused.value)
    assert before == {path: path.read_bytes() for path in (tmp_path / "ours" / FOLDER).iterdir()}
