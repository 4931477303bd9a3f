"""Exported files: what the library reads from them, and that equal models make equal ones."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load

from schemas.jobs import TaskConfig
from schemas.models import Layout, Tensor
from schemas.safetensors import metadata, to_safetensors

LAYOUT = Layout(
    job="a",
    tensors=[
        Tensor("encoder.weight", [2, 3], "float32", "trained"),
        Tensor("norm.weight", [2], "float32", "trained"),
        Tensor("norm.bias", [2], "float32", "trained"),
        Tensor("norm.running_mean", [2], "float32", "frozen"),
        Tensor("norm.running_var", [2], "float32", "frozen"),
        Tensor("norm.num_batches_tracked", [], "int64", "counter"),
    ],
    aliases={"decoder.weight": "encoder.weight"},
)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(3, 2, bias=False)
        self.norm = torch.nn.BatchNorm1d(2)
        self.decoder = torch.nn.Linear(3, 2, bias=False)
        self.decoder.weight = self.encoder.weight


def test_an_exported_model_loads_into_torch_with_tied_weights_under_each_name() -> None:
    numbers = torch.arange(14, dtype=torch.float32)
    model = numbers.numpy().tobytes() + (99).to_bytes(8, "little")
    module = Tied()
    module.load_state_dict(load(to_safetensors(LAYOUT, model, {"fedbus.job": "a"})), strict=True)
    assert module.decoder.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert module.norm.running_var is not None
    assert module.norm.running_var.tolist() == [12, 13]
    assert module.norm.num_batches_tracked == torch.tensor(99)


EVERY = Layout(
    job="a",
    tensors=[
        Tensor("grün.weight", [3], "float32", "trained"),
        Tensor("nothing", [0, 4], "float32", "trained"),
        Tensor("mask", [3], "bool", "counter"),
        Tensor("i8", [1], "int8", "counter"),
        Tensor("u8", [2, 1], "uint8", "counter"),
        Tensor("i16", [1], "int16", "counter"),
        Tensor("i32", [1], "int32", "counter"),
        Tensor("steps", [], "int64", "counter"),
    ],
)


def test_every_type_and_shape_is_read_back_as_it_was() -> None:
    plain = {
        "grün.weight": torch.tensor([1.5, -2.0, 0.0]),
        "nothing": torch.zeros(0, 4),
        "mask": torch.tensor([True, False, True]),
        "i8": torch.tensor([-1], dtype=torch.int8),
        "u8": torch.tensor([[200], [1]], dtype=torch.uint8),
        "i16": torch.tensor([-300], dtype=torch.int16),
        "i32": torch.tensor([70_000], dtype=torch.int32),
        "steps": torch.tensor(2**40),
    }
    model = b"".join(plain[tensor.name].numpy().tobytes() for tensor in EVERY.tensors)
    read = load(to_safetensors(EVERY, model, {}))
    assert {name: (t.dtype, t.shape) for name, t in read.items()} == {
        name: (t.dtype, t.shape) for name, t in plain.items()
    }
    assert all(torch.equal(read[name], plain[name]) for name in plain)


def test_an_exported_file_says_what_it_is(tmp_path: Path) -> None:
    told = metadata(b"\x01\x02", "a", 7, b"\xff", "vision", {"shape": [28, 28], "hidden": 32, "bias": True})
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_safetensors(LAYOUT, bytes(LAYOUT.model_bytes), told))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {
            "fedbus.federation": "0102",
            "fedbus.job": "a",
            "fedbus.version": "7",
            "fedbus.model": "ff",
            "fedbus.task": "vision",
            "fedbus.config": '{"bias": true, "hidden": 32, "shape": [28, 28]}',
        }


def test_equal_models_make_equal_files_in_whatever_order_their_settings_came() -> None:
    model = random.Random(0).randbytes(LAYOUT.model_bytes)
    one: TaskConfig = {"width": 8, "depth": 2}
    other: TaskConfig = {"depth": 2, "width": 8}
    first = to_safetensors(LAYOUT, model, metadata(b"", "a", 1, b"", "vision", one))
    assert to_safetensors(LAYOUT, model, metadata(b"", "a", 1, b"", "vision", other)) == first
