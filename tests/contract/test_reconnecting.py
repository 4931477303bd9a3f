"""How a bus comes back, and what it says of itself meanwhile."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus import BusError, BusLost, BusRefused, BusUndelivered, Connected
from broker.connect import LOCAL_RETRY_MAX_S
from broker.pacing import RETURN_MAX_S, return_window_s
from broker.reconnecting import RETRY_FIRST_S, RETRY_MAX_S, STABLE_S, Inbox, ReconnectingBus, pause_s
from broker.system import system_ports
from tests.contract.problems import problem
from tests.contract.transports import PATIENCE_S, Peer
from tests.sim.machine import SimClock, SimEntropy
from tests.sim.virtual_loop import run


class ScriptedLink:
    """Opens, breaks and refuses as the test says."""

    def __init__(self, opening: BusError | None = None) -> None:
        self.problem = ""
        self.opening = opening
        self.granted = asyncio.Event()
        self.answers: deque[BusError | bool] = deque()
        self._over = asyncio.Event()

    def end(self) -> None:
        self._over.set()

    async def open(self) -> None:
        if self.opening is not None:
            raise self.opening

    async def subscribe(self) -> None:
        await self.granted.wait()

    async def publish(self, topic: str, payload: bytes) -> bool:
        answer = self.answers.popleft()
        if isinstance(answer, BusError):
            raise answer
        return answer

    async def ended(self) -> BusLost:
        await self._over.wait()
        return BusLost("it broke")

    async def close(self) -> None:
        self._over.set()

    def acknowledge(self, tag: int) -> None:
        pass


@asynccontextmanager
async def bus_over(*links: ScriptedLink) -> AsyncIterator[ReconnectingBus]:
    """A bus that uses these links one after another; the last stays unused until the test ends."""
    ports = system_ports()
    waiting = deque(links)

    def dial(_: Inbox) -> ScriptedLink:
        return waiting.popleft()

    async with asyncio.timeout(PATIENCE_S):
        async with ReconnectingBus(
            "broker x", dial, clock=ports.clock, entropy=ports.entropy, window_deliveries=1
        ) as bus:
            yield bus


async def test_the_problem_is_told_from_the_first_try_until_the_subscriptions_are_granted() -> None:
    link = ScriptedLink()
    async with bus_over(ScriptedLink(BusLost("nobody answers")), link) as bus:
        assert bus.problem == "broker x: not connected yet"
        await problem(bus, "nobody answers")
        link.granted.set()
        assert await Peer(bus).connected() == Connected(1)
        assert bus.problem == ""
    assert "outside" in bus.problem


async def test_after_a_break_the_problem_is_the_break_until_the_next_connection() -> None:
    first, second = ScriptedLink(), ScriptedLink()
    first.granted.set()
    async with bus_over(first, second) as bus:
        peer = Peer(bus)
        await peer.connected()
        first.end()
        await problem(bus, "it broke")
        second.granted.set()
        assert await peer.connected() == Connected(2)
        assert bus.problem == ""


async def test_the_problem_of_a_connection_that_stands_is_told_while_it_lasts() -> None:
    link = ScriptedLink()
    link.granted.set()
    async with bus_over(link) as bus:
        await Peer(bus).connected()
        link.problem = "the broker takes nothing"
        assert bus.problem == "the broker takes nothing"
        link.problem = ""
        assert bus.problem == ""


async def test_a_refusal_stays_the_problem() -> None:
    async with bus_over(ScriptedLink(BusRefused("not you"))) as bus:
        with pytest.raises(BusRefused, match="not you"):
            await Peer(bus).connected()
        assert bus.problem == "not you"


async def test_a_message_that_the_broker_does_not_take_is_an_error_of_that_message_alone() -> None:
    link = ScriptedLink()
    link.granted.set()
    async with bus_over(link) as bus:
        await Peer(bus).connected()
        link.answers.extend([BusUndelivered("full"), True])
        with pytest.raises(BusUndelivered, match="full"):
            await bus.publish("t", b"x")
        await bus.publish("t", b"x")
        assert bus.problem == ""


class TimedLink(ScriptedLink):
    """Takes its time to open, and to break; ``dialled_s`` notes when it was tried."""

    def __init__(self, dialled_s: list[float], *, opens_s: float, stands_s: float = 0.0) -> None:
        super().__init__(None if stands_s else BusLost("nobody answers"))
        self._dialled_s = dialled_s
        self._opens_s, self._stands_s = opens_s, stands_s
        self.granted.set()

    async def open(self) -> None:
        self._dialled_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._opens_s)
        await super().open()

    async def ended(self) -> BusLost:
        await asyncio.sleep(self._stands_s)
        return BusLost("it broke")


def dialled_within(
    duration_s: float, links: Callable[[list[float]], ScriptedLink], return_max_s: float = 0.0
) -> list[float]:
    """When a bus over such links dials, on a virtual clock."""
    dialled_s: list[float] = []

    async def play() -> None:
        async with ReconnectingBus(
            "broker x",
            lambda _: links(dialled_s),
            clock=SimClock(),
            entropy=SimEntropy(0),
            window_deliveries=1,
            return_max_s=return_max_s,
        ):
            await asyncio.sleep(duration_s)

    run(play)
    return dialled_s


def test_a_broker_that_does_not_answer_is_spared_however_long_its_silence_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    silence_s = 3 * STABLE_S
    dialled_s = dialled_within(600, lambda dialled: TimedLink(dialled, opens_s=silence_s))
    pauses_s = [later - earlier - silence_s for earlier, later in pairwise(dialled_s)]
    assert pauses_s[-1] >= RETRY_MAX_S / 2
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


@pytest.mark.parametrize(("stands_s", "spared"), [(STABLE_S / 2, True), (2 * STABLE_S, False)])
def test_a_connection_that_stood_for_a_while_is_dialled_again_at_once(stands_s: float, spared: bool) -> None:
    dialled_s = dialled_within(600, lambda dialled: TimedLink(dialled, opens_s=0, stands_s=stands_s))
    pauses_s = [later - earlier - stands_s for earlier, later in pairwise(dialled_s)]
    assert (max(pauses_s) > 2 * RETRY_FIRST_S) == spared


def back_after(outage_s: float, stood_s: float, devices: int, return_max_s: float) -> list[float]:
    """When devices are back after their broker's, each by its own draws; all lost it at one moment."""
    draw, back_s = random.Random(7), []
    for _ in range(devices):
        at_s, tries, window_s = 0.0, 0, return_window_s(stood_s, return_max_s)
        while at_s < outage_s or not tries:
            jitter = draw.random()
            at_s += max(pause_s(tries, RETRY_MAX_S, jitter), jitter * window_s)
            tries += 1
        back_s.append(at_s - outage_s)
    return back_s


@pytest.mark.parametrize("outage_s", [0.0, 1.0, 3.0, 10.0, 60.0, 3_600.0])
def test_a_fleet_that_was_cut_off_at_one_moment_does_not_return_at_one(outage_s: float) -> None:
    fleet, day_s = 10_000, 86_400.0
    back_s = back_after(outage_s, day_s, fleet, RETURN_MAX_S)
    assert max(Counter(map(int, back_s)).values()) < fleet / 4
    assert max(back_s) <= RETRY_MAX_S
    if outage_s <= 1:  # the back-off alone does not do it
        assert max(Counter(map(int, back_after(outage_s, day_s, fleet, 0.0))).values()) > fleet / 2


@given(st.floats(0, 1e7))
def test_a_device_waits_for_a_hundredth_part_of_its_connections_time_at_most(stood_s: float) -> None:
    assert 0 <= return_window_s(stood_s, RETURN_MAX_S) <= min(stood_s / 99, RETURN_MAX_S)
    assert return_window_s(-math.inf, RETURN_MAX_S) == 0, "none stood"
    assert return_window_s(stood_s, 0.0) == 0, "unless it is a fleet's"


def test_a_bus_draws_when_it_returns_after_a_connection_that_stood_long() -> None:
    stands_s = 2_000.0
    dialled_s = dialled_within(
        20 * stands_s, lambda dialled: TimedLink(dialled, opens_s=0, stands_s=stands_s), RETURN_MAX_S
    )
    pauses_s = [later - earlier - stands_s for earlier, later in pairwise(dialled_s)]
    assert max(pauses_s) > RETURN_MAX_S / 2
    assert max(pauses_s) <= RETURN_MAX_S + RETRY_FIRST_S
    assert len({round(pause_s, 3) for pause_s in pauses_s}) == len(pauses_s)


jitters = st.floats(0, 1)
ceilings = st.sampled_from([LOCAL_RETRY_MAX_S, RETRY_MAX_S])


@given(st.integers(0, 10_000), jitters, ceilings)
def test_a_pause_lies_in_the_upper_half_below_its_ceiling(failures: int, jitter: float, top_s: float) -> None:
    full_s = min(top_s, RETRY_FIRST_S * 2 ** min(failures, 64))
    assert full_s / 2 <= pause_s(failures, top_s, jitter) <= full_s


def test_a_broker_on_this_machine_is_tried_again_within_a_second() -> None:
    assert pause_s(10_000, LOCAL_RETRY_MAX_S, 1) < 1
