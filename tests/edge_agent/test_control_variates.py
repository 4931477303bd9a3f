"""SCAFFOLD on the device: each step is corrected, and what is kept for the next round is by the formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn
from torch.nn import functional

from broker.system import system_ports
from broker.worker import WorkerLink
from edge_agent import private
from edge_agent.tasks.vision import VisionTask
from edge_agent.tensors import layout_of, load, model_parts
from schemas import work
from schemas.envelope import Sealed
from schemas.jobs import LocalSettings, Personal
from schemas.safetensors import to_safetensors
from tests.edge_agent.federation import JOB, Federation, Model, open_update
from tests.edge_agent.test_worker import data
from tests.edge_agent.training import CONFIG, READER, train_order

__all__ = ["data"]

pytestmark = pytest.mark.usefixtures("installed_tasks")
FILES = system_ports().files
SETTINGS = LocalSettings(batch_size=8, steps_max=3, learning_rate=0.1, seed=3)


async def made(link: WorkerLink, tmp_path: Path) -> Model:
    """The task's first model, with a personal last layer; its control variates are drawn."""
    out = tmp_path / "model.bin"
    order = work.Make(job=JOB, task="vision", config=CONFIG, seed=5, out=str(out))
    reply = await link.call(replace(order, controlled=True, personal=Personal(layers=["output.*"])))
    assert isinstance(reply, work.Made), reply
    content = bytearray(out.read_bytes())
    at, size = 4 * reply.layout.trained_count, 4 * reply.layout.control_count
    assert size == at
    assert content[at : at + size] == bytes(size)
    content[at : at + size] = drawn(reply.layout.control_count, 1).tobytes()
    return Federation().model(reply.layout, bytes(content))


def drawn(count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.1, count).astype("<f4")


def by_hand(model: Model, data: Path, correction: torch.Tensor) -> torch.Tensor:
    """What three corrected steps change the trained part by."""
    task = VisionTask(CONFIG)
    module = task.build()
    load(module, model.layout, bytearray(model.content))
    samples = task.load(data)
    order = torch.Generator().manual_seed(SETTINGS.seed)
    shuffled = samples.train[torch.randperm(len(samples.train), generator=order)]
    hidden = [module.get_parameter(name) for name in ("hidden1.weight", "hidden1.bias")]
    before = nn.utils.parameters_to_vector(hidden).detach().clone()
    for indices in torch.split(shuffled, 8)[:3]:
        x, y = samples.batch(indices)
        module.zero_grad()
        functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            at = 0
            for parameter in module.parameters():
                assert parameter.grad is not None
                step = parameter.grad.clone()
                if any(parameter is one for one in hidden):
                    step += correction[at : at + parameter.numel()].view(parameter.shape)
                    at += parameter.numel()
                parameter.sub_(SETTINGS.learning_rate * step)
    return nn.utils.parameters_to_vector(hidden).detach() - before


async def test_steps_are_corrected_and_the_devices_control_variate_follows(
    link: WorkerLink, tmp_path: Path, data: Path
) -> None:
    model = await made(link, tmp_path)
    layout, count = model.layout, model.layout.control_count
    plain = np.frombuffer(model.content, "<f4")
    ours, theirs = drawn(count, 2), plain[count : 2 * count]
    personal = plain[2 * count :]
    private.write(FILES, tmp_path / "kept", layout, [ours.tobytes(), personal.tobytes()])
    order = replace(train_order(model, tmp_path, data), local=SETTINGS, private=str(tmp_path / "kept"))
    reply = await link.call(order)
    assert isinstance(reply, work.Trained), reply
    out = Path(order.out_dir)
    sealed = Sealed(reply.clear, reply.seal, (out / work.BODY_FILE).read_bytes())
    _, content = open_update(sealed, b"", READER, Federation().member().signing)
    delta = np.frombuffer(content, "<f4")
    expected = by_hand(model, data, torch.from_numpy(theirs - ours))
    assert delta == pytest.approx(expected.numpy(), abs=1e-6)
    assert np.abs(delta - by_hand(model, data, torch.zeros(count)).numpy()).max() > 1e-3
    kept = np.frombuffer(private.read(FILES, out / work.PRIVATE_FILE, layout), "<f4")
    assert kept[:count] == pytest.approx(ours - theirs - delta / (3 * SETTINGS.learning_rate), abs=1e-5)
    assert np.abs(kept[count:] - personal).max() > 0


async def test_a_devices_first_training_begins_with_nothing(
    link: WorkerLink, tmp_path: Path, data: Path
) -> None:
    model = await made(link, tmp_path)
    count = model.layout.control_count
    order = replace(train_order(model, tmp_path, data), local=SETTINGS, private=str(tmp_path / "kept"))
    assert isinstance(await link.call(order), work.Trained)
    kept = private.read(FILES, Path(order.out_dir) / work.PRIVATE_FILE, model.layout)
    theirs = np.frombuffer(model.content, "<f4")[count : 2 * count]
    delta = by_hand(model, data, torch.from_numpy(theirs.copy())).numpy()
    assert np.frombuffer(kept, "<f4")[:count] == pytest.approx(-theirs - delta / 0.3, abs=1e-5)


async def test_an_exported_model_has_no_control_variates(link: WorkerLink, tmp_path: Path) -> None:
    from safetensors.torch import load

    model = await made(link, tmp_path)
    module = VisionTask(CONFIG).build()
    tensors = load(to_safetensors(model.layout, model.content, {}))
    module.load_state_dict(tensors)
    layout = layout_of(module, JOB, ["output.weight", "output.bias"], controlled=True)
    assert layout == model.layout
    raw = b"".join(part.numpy().tobytes() for part in model_parts(module, layout))
    border = 4 * layout.trained_count
    assert raw[:border] == model.content[:border]
    assert raw[2 * border :] == model.content[2 * border :]
