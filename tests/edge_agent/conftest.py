"""Tasks as installed packages bring them: through entry points, also for worker processes."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker.system import system_ports
from broker.worker import Limits, WorkerLink

ODD = ("Plain", "Talkative", "Endless", "Greedy", "Dying", "Broken", "Diverging", "Quoting")


@pytest.fixture(scope="session")
def installed_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A distribution with our tasks and the odd ones, on the path of this process and its children."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "fedbus_odd_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedbus-odd-tasks\nVersion: 1.0\n")
    odd = "".join(f"odd-{name.lower()} = tests.edge_agent.odd_tasks:{name}\n" for name in ODD)
    ours = "tabular = edge_agent.tasks.tabular:TabularTask\nvision = edge_agent.tasks.vision:VisionTask\n"
    (info / "entry_points.txt").write_text(f"[fedbus.tasks]\n{ours}{odd}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.syspath_prepend(str(folder))
        yield folder
    assert str(folder) not in sys.path


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[WorkerLink]:
    async with WorkerLink(system_ports(), tmp_path / "worker.log", Limits(time_s_max=100)) as link:
        yield link
