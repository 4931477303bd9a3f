"""Where training runs: the choice among what PyTorch finds, and the way to an accelerator and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

import broker.worker
from broker.worker import WorkerLink
from edge_agent import config
from edge_agent.tasks import TaskError
from edge_agent.tasks.devices import device_for
from edge_agent.tasks.vision import VisionTask
from schemas import work
from schemas.envelope import Sealed
from schemas.jobs import TaskConfig
from tests.edge_agent.federation import Federation, open_update, put
from tests.edge_agent.odd_tasks import Plain
from tests.edge_agent.party import CONFIG as PARTY
from tests.edge_agent.party import HERE, Party, eventually, tiny_model
from tests.edge_agent.training import CONFIG, READER, made, train_order
from tests.sim.machine import SimFiles
from tests.sim.virtual_loop import run

VISION = VisionTask(CONFIG)


def find(patch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Have PyTorch find these accelerators."""
    patch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
    patch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)


@pytest.mark.parametrize(
    ("found", "wanted", "chosen"),
    [
        ([], "auto", "cpu"),
        (["cuda"], "auto", "cuda"),
        (["mps"], "auto", "mps"),
        (["cuda", "mps"], "auto", "cuda"),
        (["cuda", "mps"], "mps", "mps"),
        (["cuda", "mps"], "cpu", "cpu"),
    ],
)
def test_the_owners_wish_is_met_with_what_is_there(
    monkeypatch: pytest.MonkeyPatch, found: list[str], wanted: str, chosen: str
) -> None:
    find(monkeypatch, *found)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert device_for(VISION, wanted).type == chosen
    assert torch.backends.cudnn.deterministic == (chosen == "cuda")


def test_a_task_that_does_not_move_its_batches_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    find(monkeypatch, "cuda")
    assert device_for(Plain({}), "auto").type == "cpu"
    with pytest.raises(TaskError, match=r"Plain trains on the CPU only; set device = .* in agent\.toml"):
        device_for(Plain({}), "cuda")


@pytest.mark.parametrize(("found", "words"), [([], "finds none here"), (["mps"], "finds mps here")])
def test_a_demanded_accelerator_that_is_missing_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, found: list[str], words: str
) -> None:
    find(monkeypatch, *found)
    with pytest.raises(TaskError, match=f"device = 'cuda' is demanded, but PyTorch {words}; install"):
        device_for(VISION, "cuda")


@pytest.mark.parametrize(
    ("text", "environ", "device"),
    [("", {}, "auto"), ('device = "cpu"', {}, "cpu"), ("", {"FEDBUS_POLICY_DEVICE": "cuda"}, "cuda")],
)
def test_what_the_owner_demands_is_what_the_worker_is_ordered(
    text: str, environ: dict[str, str], device: str
) -> None:
    files = SimFiles()
    put(files, HERE / "agent.toml", f"[policy]\n{text}".encode())
    policy = replace(PARTY.policy, device=config.load(files, HERE, environ).policy.device)

    async def play() -> None:
        party = Party(config=replace(PARTY, policy=policy))
        async with party.coordinator() as coordinator, party.device():
            await coordinator.request(tiny_model(party.federation))
            await eventually(lambda: party.worker.orders)
        assert party.worker.orders[0].device == device

    run(play)


def test_an_accelerator_that_nobody_knows_is_refused() -> None:
    files = SimFiles()
    put(files, HERE / "agent.toml", b'[policy]\ndevice = "gpu"')
    with pytest.raises(config.ConfigError, match=r"gpu.*policy\.device"):
        config.load(files, HERE, {})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(1)
    np.savez(
        tmp_path / "data.npz",
        x=numbers.integers(0, 16, (60, 4, 4)).astype(np.uint8),
        y=numbers.integers(0, 3, 60),
    )
    return tmp_path / "data.npz"


@pytest.mark.usefixtures("installed_tasks")
async def test_a_request_for_which_the_demanded_accelerator_is_missing_is_declined(
    link: WorkerLink, tmp_path: Path, data: Path
) -> None:
    order = train_order(await made(link, tmp_path), tmp_path, data)
    missing: Any = "mps" if not torch.backends.mps.is_available() else "cuda"
    reply = await link.call(replace(order, device=missing))
    assert isinstance(reply, work.Problem), reply
    assert reply.code == "task"
    assert f"device = {missing!r} is demanded" in reply.text


@pytest.mark.usefixtures("installed_tasks")
@pytest.mark.parametrize("model", ["mlp", "cnn"])
async def test_what_an_accelerator_trained_comes_back_as_the_same_update(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, link: WorkerLink, model: str
) -> None:
    settings: TaskConfig = {"shape": [4, 4], "classes": 3, "model": model}
    base = await made(link, tmp_path, config=settings)
    order = replace(train_order(base, tmp_path, data), config=settings)

    async def content() -> bytes:
        reply = await link.call(order)
        assert isinstance(reply, work.Trained), reply
        sealed = Sealed(reply.clear, reply.seal, (Path(order.out_dir) / work.BODY_FILE).read_bytes())
        return open_update(sealed, b"", READER, Federation().member().signing)[1]

    on_cpu = await content()
    await link.close()
    monkeypatch.setattr(broker.worker, "WORKER", "tests.edge_agent.toy_accelerator")
    on_toy = await content()
    told = (tmp_path / "worker.log").read_text()
    assert {"toy: aten::addmm", "toy: aten::_local_scalar_dense"} <= set(told.splitlines())
    assert on_toy == on_cpu
