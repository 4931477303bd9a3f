"""Runs beside each other, one process for each core."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.sim.pool import pool

TELL_EVERY: Final = 20

Spread = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""Calls a function with each of the arguments; the results in their order."""


def beside(run: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """A `Spread` over processes. What fails ends all."""
    with pool(os.cpu_count() or 1) as processes:
        tasks = [processes.submit(run, *call) for call in calls]
        results = []
        for task in tasks:
            results.append(task.result())
            if len(results) % TELL_EVERY == 0 or len(results) == len(tasks):
                print(f"{run.__name__}: {len(results)} of {len(tasks)}", flush=True)
        return results
