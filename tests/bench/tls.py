"""The resident agent over TLS while it sends an update of 100 MB: a real agent, a real worker, Mosquitto."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from broker.worker import with_our_packages
from tests.bench.deployed import TASK, config_of, deployed
from tests.bench.idle import field_bytes
from tests.brokers import until
from tests.live.fleet import children
from tests.live.installation import Installation

PARAMETERS = 25_000_000  # 100 MB
DEVICE = "device-1"
PATIENCE_S = 300.0
AFTER_S = 60.0
SETTINGS = 'worker_idle_s = 1.0\n[policy]\ntasks = ["vision"]\n[data]\nvision = "{data}"\n'


def measure() -> dict[str, Any]:
    """Memory of the resident in bytes: idle, at its highest, and `AFTER_S` after the update was receipted."""
    with (
        TemporaryDirectory(prefix="fedbus-tls-") as name,
        deployed("mosquitto", Path(name), tls=True) as deployment,
        deployment.site as site,
    ):
        home = site.directory.with_name(f"{site.directory.name}-{DEVICE}")
        config = config_of(PARAMETERS)
        data = Path(name) / "data.npz"
        x = np.random.default_rng(0).random((8, *config["shape"]), np.float32)
        np.savez(data, x=x, y=np.arange(8) % 2)
        assert site.enroll(DEVICE, site.invite(DEVICE)[0]).returncode == 0
        (home / "agent.toml").write_text(SETTINGS.format(data=data))
        with _agent(home) as pid:
            until(lambda: site.command("devices", "list")[0]["tasks"], "it has reported")
            time.sleep(5)
            idle_bytes = field_bytes(pid, "VmRSS")
            _submit(site, config)
            until(lambda: _job(site)["state"] == "finished", "the job is finished", PATIENCE_S)
            peak_bytes = field_bytes(pid, "VmHWM")
            until(lambda: not children(pid), "the worker is gone")
            time.sleep(AFTER_S)
            after_bytes = field_bytes(pid, "VmRSS")
    return {
        "parameters": PARAMETERS,
        "rss_idle_bytes": idle_bytes,
        "rss_peak_bytes": peak_bytes,
        "rss_after_bytes": after_bytes,
        "after_s": AFTER_S,
    }


def _submit(site: Installation, config: dict[str, Any]) -> None:
    job = site.directory.parent / "job.toml"
    lines = [f"{key} = {value!r}" for key, value in config.items()]
    job.write_text(
        f'name = "large"\ntask = "{TASK}"\nrounds = 1\ncohort = 1\ndeadline_s = 3600\n'
        "[local]\nlearning_rate = 0.001\n[config]\n" + "\n".join(lines) + "\n"
    )
    site.command("jobs", "submit", str(job))


def _job(site: Installation) -> dict[str, Any]:
    job: dict[str, Any] = site.command("jobs", "show", "large")
    return job


@contextmanager
def _agent(home: Path) -> Iterator[int]:
    argv = [sys.executable, "-P", "-m", "edge_agent.cli", "run", "--dir", str(home)]
    with home.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            argv, env=with_our_packages(os.environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
