"""``make chaos``: runs against real brokers, a summary of each; exit status 1 if anything did not hold."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from datetime import datetime

from tests.bench.deployed import BROKERS
from tests.brokers import PackageMissing, require
from tests.chaos.plan import Kind
from tests.chaos.run import PACKAGES, Wish, run


def main() -> int:
    """Those brokers that are named, or all, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--broker", choices=[*BROKERS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--duration-s", type=float, default=60.0, help="of the faults, at each broker")
    parser.add_argument(
        "--count",
        type=counted,
        action="append",
        default=[],
        metavar="KIND=N",
        help=f"in place of a duration: so many faults of a kind ({', '.join(Kind)})",
    )
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and everything that was started is ended
    good = True
    for broker in BROKERS if asked.broker == "all" else [asked.broker]:
        try:
            require(PACKAGES[broker])
        except PackageMissing as missing:
            print(f"chaos: {missing}; as root: tests/install_brokers.sh", file=sys.stderr)
            return 1
        summary, wrong = run(Wish(broker, asked.seed, dict(asked.count), asked.duration_s), tell)
        print(json.dumps(summary, indent=1), flush=True)
        for line in wrong:
            print(f"chaos: {broker}: {line}", file=sys.stderr, flush=True)
        if wrong:
            print(f"chaos: {broker}: everything is kept in {summary['directory']}", file=sys.stderr)
        good = good and not wrong
    return 0 if good else 1


def tell(what: str) -> None:
    """Progress, for a person who waits."""
    print(f"{datetime.now():%H:%M:%S} {what}", file=sys.stderr, flush=True)  # noqa: DTZ005


def counted(text: str) -> tuple[Kind, int]:
    """From ``KIND=N``."""
    kind, _, number = text.partition("=")
    try:
        return Kind(kind), int(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: write KIND=N") from error


if __name__ == "__main__":
    sys.exit(main())
