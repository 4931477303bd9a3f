"""The simulated machine without its disk: how its time passes, how its processes end."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from broker.ports import LockHeld
from tests.sim.machine import WALL_START_S, SimProcess, sim_machine, sim_ports
from tests.sim.virtual_loop import VirtualDeadlock, VirtualTimeLimit, run

A = Path("/a")


def test_a_lock_is_held_once_and_freed_by_the_end_of_its_machine() -> None:
    machine = sim_machine()
    with machine.lock.hold(A):
        with pytest.raises(LockHeld), machine.lock.hold(A):
            pass
        machine.restart()
        with machine.lock.hold(A):
            pass
    with machine.lock.hold(A):
        pass


def test_virtual_time_jumps_to_the_next_timer_and_clocks_follow() -> None:
    async def scenario() -> list[tuple[str, float]]:
        ports = sim_ports()
        seen: list[tuple[str, float]] = []

        async def sleeper(name: str, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            seen.append((name, ports.clock.monotonic_s()))

        async with asyncio.TaskGroup() as group:
            group.create_task(sleeper("day", 80_000), name="day")
            group.create_task(sleeper("second", 1), name="second")
        assert ports.clock.wall_s() == WALL_START_S + 80_000
        return seen

    assert run(scenario) == [("second", 1.0), ("day", 80_000.0)]


def test_a_deadlock_is_told_with_the_tasks_that_wait() -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait(), name="waits for ever")

    with pytest.raises(VirtualDeadlock, match=r"waits for ever waits at .*locks.py"):
        run(scenario)


def test_a_run_that_takes_too_long_is_ended() -> None:
    cleaned = False

    async def scenario() -> None:
        nonlocal cleaned
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(5)
            cleaned = True

    with pytest.raises(VirtualTimeLimit, match="not done after 100 s"):
        run(scenario, max_virtual_s=100)
    assert cleaned


def test_equal_seeds_give_equal_runs_and_equal_bytes() -> None:
    async def scenario() -> list[bytes]:
        entropy = sim_ports(seed=7).entropy
        return [entropy.random_bytes(16) for _ in range(3)]

    assert run(scenario) == run(scenario)
    assert len(set(run(scenario))) == 3


def test_offload_yields_once_and_a_call_cancelled_before_never_runs() -> None:
    order: list[str] = []

    async def scenario() -> None:
        offload = sim_ports().offload
        async with asyncio.TaskGroup() as group:
            cancelled = group.create_task(offload.run(order.append, "cancelled"), name="cancelled")
            group.create_task(offload.run(order.append, "offloaded"), name="offloaded")
            await asyncio.sleep(0)
            cancelled.cancel()
            order.append("meanwhile")

    run(scenario)
    assert order == ["meanwhile", "offloaded"]


def test_a_simulated_child_answers_ends_and_dies_with_its_machine() -> None:
    async def scenario() -> None:
        machine = sim_machine(
            factory=lambda argv, env: SimProcess(lambda data: data.upper() if data else None)
        )
        child = await machine.ports.spawn.start(["worker"], env={})
        await child.write(b"hello")
        assert await child.read_exactly(5) == b"HELLO"
        await child.write(b"")
        assert await child.wait() == 0
        with pytest.raises(EOFError, match="after 0 of 1"):
            await child.read_exactly(1)
        with pytest.raises(BrokenPipeError):
            await child.write(b"x")
        other = await machine.ports.spawn.start(["worker"], env={})
        async with asyncio.TaskGroup() as group:
            waiter = group.create_task(other.wait(), name="waiter")
            await asyncio.sleep(1)
            machine.crash(random.Random(0))
        assert waiter.result() == -9
        with pytest.raises(FileNotFoundError):
            await sim_ports().spawn.start(["worker"], env={})

    run(scenario)


def test_threads_are_refused_on_a_virtual_clock() -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="Offload port"):
            await asyncio.get_running_loop().run_in_executor(None, print)

    run(scenario)
