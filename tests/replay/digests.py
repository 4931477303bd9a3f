"""Replays state directories, and says in what surroundings: a program for any Python that has fedbus.

``python -P digests.py DIR…`` prints one JSON document. It imports nothing of the tests.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any


def surroundings() -> dict[str, Any]:
    """What may differ from one process to the next, as it is in this one."""
    import numpy as np
    from threadpoolctl import threadpool_info

    config: Any = np.show_config(mode="dicts")
    return {
        "python": platform.python_version(),
        "hash": hash("fedbus"),
        "features": config["SIMD Extensions"].get("found", []),
        "blas": [{"core": one["architecture"], "threads": one["num_threads"]} for one in threadpool_info()],
        "torch": "torch" in sys.modules,
    }


def digests(directory: Path) -> dict[str, Any]:
    """Each version's digest, as it was computed here."""
    from broker.system import system_ports
    from coordinator.replay import replay

    result = replay(system_ports(), directory)
    return {
        "equal": result["equal"],
        "versions": {job: [one["computed"] for one in of] for job, of in result["jobs"].items()},
    }


def main() -> None:
    told = {name: digests(Path(name)) for name in sys.argv[1:]}
    sys.stdout.write(json.dumps({"replays": told} | surroundings()) + "\n")


if __name__ == "__main__":
    main()
