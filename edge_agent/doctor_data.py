"""Tasks and data of a device, looked at by the same worker process that will train on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Final

from broker.checkup import Finding, Level, unwritable
from broker.ports import Ports
from broker.worker import Limits, WorkerFailed, WorkerLink
from edge_agent import tasks
from edge_agent.config import FILE, Config
from edge_agent.ledger import Ledger
from edge_agent.listen import data_is_there
from schemas import work
from schemas.jobs import TaskConfig

INSPECT_S: Final = 600.0
WORKER_LOG: Final = "doctor.log"

Pair = tuple[str, str]  # task, data set


async def examine(directory: Path, settings: Config, ports: Ports) -> AsyncIterator[Finding]:
    """Each allowed task, with each of its data sets, and the other data sets."""
    agent_toml, policy = directory / FILE, settings.policy
    if not policy.tasks:
        remedy = (
            f'name tasks that this device may train, below [policy] in {agent_toml}: `tasks = ["vision"]`'
        )
        yield Finding("tasks", Level.WARNING, "no task is allowed: this device trains nothing", remedy)
    installed = tasks.installed()
    looks = _looks(directory, settings, ports)
    limits = Limits(policy.threads, policy.memory_bytes_max, INSPECT_S)
    log = directory / WORKER_LOG
    try:  # the worker's words need a place
        ports.files.open(log, create=True).close()
    except OSError as error:
        yield unwritable(directory, error)
        return
    async with WorkerLink(ports, log, limits) as link:
        for (task, name), config in looks.items():
            if task not in installed:
                yield _missing(task, installed)
            else:
                data = settings.data.get(name, "")
                order = work.Inspect(task=task, dataset=data, config=config, device=policy.device)
                yield await _inspected(link, order, name, agent_toml)
    ports.files.remove(log)
    for name in sorted(settings.data.keys() - {name for _, name in looks}):
        path = settings.data[name]
        there = data_is_there(ports.files, path)
        measured = f"{path}: {'is there; a job must name it to say more' if there else 'no such file'}"
        remedy = "" if there else f"correct its path below [data] in {agent_toml}"
        yield Finding(f"data {name}", Level.OK if there else Level.FAULT, measured, remedy)


def _looks(directory: Path, settings: Config, ports: Ports) -> dict[Pair, TaskConfig | None]:
    """What to look at, under the configuration of the newest request that waits for training, if one does."""
    looks: dict[Pair, TaskConfig | None] = {(task, task): None for task in settings.policy.tasks}
    book = Ledger(ports.files, directory)
    for record in book.waiting():
        request = book.request(record.key)
        if request is not None and request.task in settings.policy.tasks:
            looks[request.task, request.dataset or request.task] = request.config
    return looks


def _missing(task: str, installed: Collection[str]) -> Finding:
    measured = f"allowed, and not installed; installed: {', '.join(installed) or 'none'}"
    remedy = "`pip install` the package that provides it, or take it out of policy.tasks"
    if not installed:
        remedy = "without PyTorch there is no task: `pip install 'fedbus[agent]'`"
    return Finding(f"task {task}", Level.FAULT, measured, remedy)


async def _inspected(link: WorkerLink, order: work.Inspect, name: str, agent_toml: Path) -> Finding:
    what = f"task {order.task}"
    try:
        reply = await link.call(order)
    except WorkerFailed as failed:
        return Finding(
            what, Level.FAULT, str(failed), "see whether the same happens again; the task is at fault"
        )
    if isinstance(reply, work.Problem):
        measured, _, remedy = reply.text.rpartition("; ")
        named = f"data {name}" if reply.code == "data" else what
        return Finding(named, Level.FAULT, measured or remedy, remedy if measured else "")
    if not order.dataset:
        remedy = f'name its file below [data] in {agent_toml}: `{name} = "FILE"`'
        return Finding(f"data {name}", Level.WARNING, f"{what} can be used, and has no data set", remedy)
    facts = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in reply.facts.items()
    )
    return Finding(f"data {name}", Level.OK, f"{order.dataset}: {facts}")
