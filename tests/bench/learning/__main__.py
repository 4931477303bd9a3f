"""``make bench-learning``: runs the learning benches, prints them, and keeps them in ``docs/bench/``."""

from __future__ import annotations

import sys
from typing import Final

from tests.bench import run
from tests.bench.learning import asynchronous, fashion, nova, plots, strategies, uplink

BENCHES: Final[run.Benches] = {
    "strategies": (strategies.measure, plots.strategies),
    "nova": (nova.measure, plots.nova),
    "asynchronous": (asynchronous.measure, plots.asynchronous),
    "bytes": (uplink.measure, plots.uplink),
    "fashion": (fashion.measure, plots.fashion),
}


def main() -> int:
    """Those that are named, or all. Exit status 1 if one misses a bound."""
    kept = [run.run(name, BENCHES) for name in sys.argv[1:] or BENCHES]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
