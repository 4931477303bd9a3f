"""The simulation by itself: ``python -m tests.sim points`` kills the programs at every point of a round."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from functools import partial

from schemas.ids import COORDINATOR
from tests.sim.crash_points import DEVICE, ENDS, by_kind, die, points
from tests.sim.pool import pool, quiet


def all_points(jobs: int) -> int:
    """Every point of every kind, each end; the number of failures."""
    began_s, problems, runs = time.monotonic(), list[str](), 0
    with pool(jobs) as processes:
        for mortal in (COORDINATOR, DEVICE):
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("what", choices=["points"])
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    options = parser.parse_args()
    quiet()
    sys.exit(all_points(options.jobs) > 0)


if __name__ == "__main__":
    main()
