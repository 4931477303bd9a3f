"""The tabular task over the whole way: production coordinator and agents, real workers, memory between."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from broker.bus import Credentials
from broker.memory import MemoryBroker, MemoryBus
from broker.system import system_ports
from broker.worker import WorkerLink
from coordinator.app import Coordinator
from coordinator.broker_admin.access import ListedAccess, UnmanagedUsers
from coordinator.config import Config as CoordinatorConfig
from coordinator.config import load_config
from coordinator.keystore import KeyStore, load_identity
from coordinator.replay import replay
from coordinator.setup import init
from coordinator.state import ENDED_JOB
from coordinator.store import Store
from edge_agent.app import Agent
from edge_agent.config import Config, Policy
from edge_agent.enrol import enrol, prepare
from schemas import topics, work
from schemas.enrolment import token_from_text
from schemas.ids import COORDINATOR
from schemas.jobs import TaskConfig

PORTS: Final = system_ports()
DEVICES: Final = 3
ROUNDS: Final = 4
TEST_ROWS: Final = 169
LOOK_S: Final = 0.05
PATIENCE_S: Final = 90.0

pytestmark = [pytest.mark.usefixtures("installed_tasks"), pytest.mark.live]


def write_cancer(folder: Path) -> tuple[list[Path], Path, TaskConfig]:
    """Breast cancer (Wisconsin, diagnostic): a file per device, one for the test, the job's configuration."""
    data = load_breast_cancer()
    names = [str(name) for name in data.feature_names]
    order = np.random.default_rng(7).permutation(len(data.target))
    parts = [order[:TEST_ROWS], *np.array_split(order[TEST_ROWS:], DEVICES)]
    paths = [folder / f"part-{number}.csv" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["diagnosis", *names])
            for row in part:
                table.writerow([data.target_names[data.target[row]], *map(str, data.data[row].tolist())])
    config: TaskConfig = {
        "columns": list(names),
        "label": "diagnosis",
        "classes": ["malignant", "benign"],
        "mean": data.data.mean(axis=0).round(3).tolist(),
        "scale": data.data.std(axis=0).round(4).tolist(),
        "hidden": [],
    }
    return paths[1:], paths[0], config


@asynccontextmanager
async def serving(home: Path, broker: MemoryBroker) -> AsyncIterator[Coordinator]:
    init(PORTS, home, CoordinatorConfig(broker="memory:test"))
    identity = load_identity(PORTS.files, home)
    bus = MemoryBus(broker, Credentials(COORDINATOR), [topics.all_up(identity.federation)])
    access = ListedAccess(PORTS, home, UnmanagedUsers())
    coordinator = Coordinator(home, load_config(PORTS.files, home, {}), identity, PORTS, bus, access)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(coordinator.run(listen=False), name="coordinator")
        yield coordinator
        running.cancel()


async def take_part(folder: Path, token: str, data: Path, broker: MemoryBroker) -> None:
    """Enrol, and run the agent until cancelled."""
    config = Config(policy=Policy(tasks=["tabular"], device="cpu"), data={"tabular": str(data)})
    identity = prepare(PORTS, folder, token_from_text(token))

    def bus() -> MemoryBus:
        return MemoryBus(broker, identity.credentials(), [identity.down_topic])

    identity = await enrol(PORTS, folder, identity, bus())
    await Agent(folder, config, PORTS, bus(), identity, installed=lambda: ["tabular"]).run()


async def trained(tmp_path: Path, parts: Iterable[Path], config: TaskConfig, **fields: Any) -> None:
    """Play the job ``cancer``, to which ``fields`` are added, to its end."""
    broker = MemoryBroker()
    async with serving(tmp_path / "c", broker) as coordinator, asyncio.TaskGroup() as group:

        async def command(op: str, **fields: Any) -> Any:
            return await coordinator.commands.handle({"op": op} | fields)

        agents = [
            group.create_task(
                take_part(
                    tmp_path / path.stem, (await command("invite", device=path.stem))["token"], path, broker
                ),
                name=path.stem,
            )
            for path in parts
        ]
        local = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}
        counts = {"rounds": ROUNDS, "cohort": DEVICES, "min_reports": DEVICES}
        spec = {"name": "cancer", "task": "tabular", "config": config, "local": local} | counts | fields
        await command("submit", spec=spec)
        jobs = coordinator.ledger.state.jobs
        async with asyncio.timeout(PATIENCE_S):
            while jobs["cancer"].state not in ENDED_JOB:  # noqa: ASYNC110 - its end sets no event
                await asyncio.sleep(LOOK_S)
        for agent in agents:
            agent.cancel()


async def test_three_devices_learn_from_csv_files_what_none_of_them_shows(
    tmp_path: Path, link: WorkerLink
) -> None:
    parts, test, config = write_cancer(tmp_path)
    await trained(tmp_path, parts, config)
    home = tmp_path / "c"
    result = replay(PORTS, home)
    assert result["equal"]
    assert [version["updates"] for version in result["jobs"]["cancer"]] == [0, *[DEVICES] * ROUNDS]
    store = Store(
        PORTS.files, home, load_identity(PORTS.files, home), KeyStore(PORTS.files, home, PORTS.entropy)
    )
    (newest,) = [v for v in result["jobs"]["cancer"] if v["version"] == ROUNDS]
    reply = await link.call(
        work.Evaluate(
            task="tabular",
            config=config,
            model=str(store.model_path("cancer", bytes.fromhex(newest["recorded"]))),
            layout=store.layout("cancer"),
            dataset=str(test),
            whole=True,
        )
    )
    assert isinstance(reply, work.Evaluated), reply
    assert reply.metrics["samples"] == TEST_ROWS
    assert reply.metrics["accuracy"] > 0.94
