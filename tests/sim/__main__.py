"""The simulation by itself: ``python -m tests.sim 0:2000`` plays fleets, ``points`` kills the programs at
every point of a round, ``mutants`` looks whether fleets find the bugs that are planted for them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from functools import partial

from tests.sim.crash_points import ENDS, MORTALS, by_kind, die, points
from tests.sim.mutation import all_mutants
from tests.sim.pool import pool, quiet
from tests.sim.seeds import Played, play, summary

SAY_EVERY = 100  # seeds


def all_points(jobs: int) -> int:
    """Every point of every kind, each end; the number of failures."""
    began_s, problems, runs = time.monotonic(), list[str](), 0
    with pool(jobs) as processes:
        for mortal in MORTALS:
            seen = points(mortal)
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(by_kind(seen).items()))
            print(f"{mortal}: {len(seen)} points ({kinds})", flush=True)
            failed = Counter[str]()
            for end in ENDS:
                found = processes.map(partial(die, mortal, end), range(1, len(seen) + 1), chunksize=4)
                for problem in found:
                    runs += 1
                    if problem:
                        failed[end] += 1
                        problems.append(problem)
                print(f"  {end}: {len(seen) - failed[end]} of {len(seen)} points hold", flush=True)
    print(*problems, sep="\n")
    print(f"{runs} deaths, {len(problems)} failures, {time.monotonic() - began_s:.0f} s")
    return len(problems)


def all_seeds(first: int, end: int, jobs: int, *, only_first: bool = False) -> int:
    """Play seeds, ``end`` excluded; the number of failures, or 1 if the summary lacks something.

    ``only_first``: up to the first failure.
    """
    began_s, played = time.monotonic(), list[Played]()
    with pool(jobs) as processes:
        for one in processes.map(play, range(first, end), chunksize=2):
            played.append(one)
            if one.problem:
                print(f"seed {one.seed} FAILED: {one.problem}", *one.trace, sep="\n", flush=True)
                if only_first:
                    processes.shutdown(wait=False, cancel_futures=True)
                    return 1
            elif len(played) % SAY_EVERY == 0:
                print(f"{len(played)} seeds, {time.monotonic() - began_s:.0f} s", flush=True)
    lines = list(summary(played, time.monotonic() - began_s))
    print(*lines, sep="\n")
    return sum(bool(one.problem) for one in played) or int(any(line.startswith("NOT") for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("what", help="points, mutants, or seeds as FIRST:END")
    parser.add_argument("--first", action="store_true", help="end with the first seed that fails")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    options = parser.parse_args()
    quiet()
    if options.what == "points":
        sys.exit(all_points(options.jobs) > 0)
    if options.what == "mutants":
        missed = 0
        for line in all_mutants(options.jobs):
            print(line, flush=True)
            missed += line.startswith("NOT")
        sys.exit(missed > 0)
    first, _, end = options.what.partition(":")
    sys.exit(all_seeds(int(first), int(end), options.jobs, only_first=options.first) > 0)


if __name__ == "__main__":
    main()
