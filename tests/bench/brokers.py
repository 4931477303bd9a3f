"""What a round costs on each broker beside the training: the demonstration on a broker set up for it.

Beside it stands the time in which bare clients carry the bytes of a round through the same broker.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from broker.worker import with_our_packages
from tests.bench.deployed import Deployment, deployed
from tests.standin import StandIn

DEVICES = 4
ROUNDS = 20
RAW_RUNS = 3


def rounds(kind: str) -> dict[str, Any]:
    """Raw times of every round but the first, in which workers start."""
    with TemporaryDirectory(prefix="fedbus-rounds-") as name, deployed(kind, Path(name)) as deployment:
        home = deployment.site.directory
        argv = [sys.executable, "-P", "-m", "coordinator.cli", "demo", "--json", "--dir", str(home)]
        argv += ["--devices", str(DEVICES), "--rounds", str(ROUNDS), "--seed", "1"]
        environment = with_our_packages(os.environ)
        done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, check=True)
        result = json.loads(done.stdout)
        round_bytes = (result["bytes_up"] + result["bytes_down"]) // ROUNDS
        with deployment.site:
            devices = asyncio.run(_strangers(deployment))
        ends = deployment.ends(devices)
        raw = [ends.carry(2 * DEVICES, max(round_bytes // (2 * DEVICES), 64)) for _ in range(RAW_RUNS)]
    overhead_s = result["round_overhead_s"][1:]
    return {
        "broker": kind,
        "devices": DEVICES,
        "round_overhead_s": overhead_s,
        "round_overhead_s_median": median(overhead_s),
        "round_bytes": round_bytes,
        "raw_s": raw,
        "raw_s_median": median(raw),
        "ratio": median(raw) / median(overhead_s),
        "accuracy": result["accuracy"],
    }


async def _strangers(deployment: Deployment) -> list[StandIn]:
    """Users of the same federation that are not the demo's devices."""
    async with deployment.devices(DEVICES, "raw") as devices:
        return list(devices)
