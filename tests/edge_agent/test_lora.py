"""Fine-tuning by adapters: the model stays as it came, and only the adapters travel up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from broker.worker import WorkerLink
from edge_agent.tasks import TaskError
from edge_agent.tasks.vision import VisionTask
from edge_agent.tensors import layout_of
from schemas import work
from schemas.jobs import LocalSettings, TaskConfig
from tests.edge_agent.federation import JOB, Federation
from tests.edge_agent.test_tasks_vision import DIGITS, digits
from tests.edge_agent.test_worker import data
from tests.edge_agent.training import CONFIG, built, no_pace, train_order

__all__ = ["data"]

TUNED: TaskConfig = {**DIGITS, "lora_rank": 4, "lora_alpha": 8.0}


def trained_names(config: TaskConfig) -> list[str]:
    layout = layout_of(built(VisionTask(config)), JOB)
    return [tensor.name for tensor in layout.tensors if tensor.role == "trained"]


def test_only_the_adapters_are_trained_and_travel_up() -> None:
    assert trained_names(TUNED) == [f"{name}.lora_{part}" for name in ("hidden1", "output") for part in "ab"]
    layout = layout_of(built(VisionTask(TUNED)), JOB)
    assert layout.trained_count == 4 * (64 + 64) + 4 * (64 + 10)
    cnn: TaskConfig = {"model": "cnn", "shape": [8, 8], "classes": 10, "lora_rank": 2}
    assert trained_names(cnn) == ["output.lora_a", "output.lora_b"]


def test_with_new_adapters_the_model_is_the_one_without() -> None:
    plain, tuned, other = (
        built(VisionTask(DIGITS)),
        built(VisionTask(TUNED)),
        built(VisionTask(TUNED), seed=2),
    )
    x = torch.rand(5, 8, 8)
    assert torch.equal(tuned(x), plain(x))
    first, second = tuned.state_dict()["hidden1.lora_a"], other.state_dict()["hidden1.lora_a"]
    assert torch.equal(first, built(VisionTask(TUNED)).state_dict()["hidden1.lora_a"])
    assert not torch.equal(first, second)
    assert first.std() == pytest.approx(64**-0.5, rel=0.2)


def test_training_moves_the_adapters_alone_and_learns_by_the_formula(tmp_path: Path) -> None:
    task = VisionTask(TUNED)
    samples = task.load(digits(tmp_path / "digits.npz"))
    model = built(task)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = task.evaluate(model, samples)["loss"]
    settings = LocalSettings(epochs=20, batch_size=16, weight_decay=0.01, proximal=0.01)
    task.train(model, samples, settings, no_pace)
    assert task.evaluate(model, samples)["loss"] < loss / 2
    after = model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == set(trained_names(TUNED))
    merged = built(VisionTask(DIGITS))
    state = merged.state_dict()
    for name in ("hidden1", "output"):
        low = 8.0 / 4 * after[f"{name}.lora_b"] @ after[f"{name}.lora_a"]
        state[f"{name}.weight"].copy_(after[f"{name}.weight"] + low)
        state[f"{name}.bias"].copy_(after[f"{name}.bias"])
    x = torch.rand(5, 8, 8)
    torch.testing.assert_close(merged(x), model(x))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({**DIGITS, "lora_alpha": 2}, "lora_alpha = 2 is not allowed without lora_rank"),
        ({**DIGITS, "lora_rank": 0}, "lora_rank = 0 is not allowed"),
        ({**DIGITS, "lora_rank": 11}, "lora_rank = 11 is more than layer output has inputs or outputs"),
    ],
)
def test_what_makes_no_adapters_is_refused(config: dict[str, Any], told: str) -> None:
    with pytest.raises(TaskError, match=told):
        VisionTask(config).build()


@pytest.mark.usefixtures("installed_tasks")
async def test_a_model_without_adapters_is_handed_in_and_tuned(
    link: WorkerLink, tmp_path: Path, data: Path
) -> None:
    from safetensors.torch import save_file

    start, out = tmp_path / "start.safetensors", tmp_path / "model.bin"
    plain = built(VisionTask(CONFIG), seed=9).state_dict()
    save_file(plain, start)
    config: TaskConfig = {**CONFIG, "lora_rank": 2}
    order = work.Make(job=JOB, task="vision", config=config, seed=5, out=str(out), parameters=str(start))
    reply = await link.call(order)
    assert isinstance(reply, work.Made), reply
    content = out.read_bytes()
    border = 4 * reply.layout.trained_count
    frozen = [tensor.name for tensor in reply.layout.tensors if tensor.role == "frozen"]
    assert content[border:] == b"".join(plain[name].numpy().tobytes() for name in frozen)
    assert content[: 4 * 2 * 16] != bytes(4 * 2 * 16)
    model = Federation().model(reply.layout, content)
    trained = await link.call(replace(train_order(model, tmp_path, data), config=config))
    assert isinstance(trained, work.Trained), trained
    save_file({name: plain[name] for name in ("output.weight", "output.bias")}, start)
    refused = await link.call(order)
    assert isinstance(refused, work.Problem)
    assert "hidden1.weight is missing" in refused.text
