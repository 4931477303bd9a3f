"""An idle agent's memory: after a real round, its worker gone; then it answers another request."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.live.fleet import Fleet, children

HEAVY = ("torch", "numpy", "rich", "safetensors")


def measure() -> dict[str, Any]:
    """Resident memory in bytes from /proc, children counted, and which heavy libraries are mapped."""
    with (
        TemporaryDirectory(prefix="fedbus-idle-") as name,
        Fleet(Path(name), 1, agent_toml="worker_idle_s = 1.0") as fleet,
    ):
        fleet.run_all()
        fleet.submit("first", rounds=1)
        fleet.until(lambda: fleet.finished("first"))
        pid = fleet.processes[fleet.devices[0]].pid
        fleet.until(lambda: not children(pid))
        maps = Path(f"/proc/{pid}/maps").read_text()
        resident = {
            "rss_bytes": field_bytes(pid, "VmRSS"),
            "rss_peak_bytes": field_bytes(pid, "VmHWM"),
            "children": len(children(pid)),
            "mapped": [library for library in HEAVY if f"/{library}/" in maps],
        }
        fleet.submit("second", rounds=1)
        fleet.until(lambda: fleet.finished("second"))
        return resident | {"answered_again": True, "rss_after_bytes": field_bytes(pid, "VmRSS")}


def field_bytes(pid: int, field: str) -> int:
    """A size from /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)
