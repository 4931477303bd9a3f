"""Layouts of modules: what travels, what stays, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edge_agent.tensors import layout_of, load, model_parts, subtract_base
from schemas.errors import LayoutMismatch
from schemas.models import Layout


def roles(module: nn.Module) -> dict[str, str]:
    return {tensor.name: tensor.role for tensor in layout_of(module, "job").tensors}


def content(module: nn.Module, layout: Layout) -> bytearray:
    return bytearray(b"".join(part.numpy().tobytes() for part in model_parts(module, layout)))


class Many(nn.Module):
    """Any mixture of tensors."""

    def __init__(self, parts: list[tuple[str, list[int]]]) -> None:
        super().__init__()
        first = nn.Parameter(torch.randn(3))
        self.register_parameter("first", first)
        for number, (kind, shape) in enumerate(parts):
            name = f"t{number}"
            match kind:
                case "trained" | "frozen":
                    value = nn.Parameter(torch.randn(shape), requires_grad=kind == "trained")
                    self.register_parameter(name, value)
                case "transposed":
                    self.register_parameter(name, nn.Parameter(torch.randn([2, *shape]).mT))
                case "running":
                    self.register_buffer(name, torch.randn(shape))
                case "bool":
                    self.register_buffer(name, torch.rand(shape) < 0.5)
                case "tied":
                    self.register_parameter(name, first)
                case _:
                    self.register_buffer(name, torch.randint(0, 100, shape).to(getattr(torch, kind)))


KINDS = (
    "trained",
    "frozen",
    "transposed",
    "running",
    "tied",
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
)
PARTS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 4), min_size=1, max_size=3)), max_size=8
)


@given(PARTS)
def test_a_model_set_from_its_bytes_is_the_same_model(parts: list[tuple[str, list[int]]]) -> None:
    module, other = Many(parts), Many(parts)
    layout = layout_of(module, "job")
    raw = content(module, layout)
    assert len(raw) == layout.model_bytes
    load(other, layout, raw)
    assert content(other, layout) == raw
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@given(PARTS)
def test_the_delta_is_what_the_trained_part_changed_by(parts: list[tuple[str, list[int]]]) -> None:
    module = Many(parts)
    layout = layout_of(module, "job")
    base = content(module, layout)
    with torch.no_grad():
        for name in {tensor.name for tensor in layout.tensors}:
            value = module.state_dict()[name]
            value.copy_(~value if value.dtype is torch.bool else value + 1)
    before = torch.frombuffer(bytearray(base), dtype=torch.float32, count=layout.trained_count)
    after = torch.frombuffer(content(module, layout), dtype=torch.float32, count=layout.trained_count)
    delta = torch.frombuffer(subtract_base(module, layout, base), dtype=torch.float32)
    assert torch.equal(delta, after - before)


def test_running_statistics_are_trained_and_their_counter_is_not() -> None:
    found = roles(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    assert found["1.running_mean"] == found["1.running_var"] == found["1.weight"] == "trained"
    assert found["1.num_batches_tracked"] == "counter"


def test_frozen_parameters_travel_after_the_trained_ones() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    module[0].requires_grad_(False)
    assert list(roles(module).items()) == [
        ("1.weight", "trained"),
        ("1.bias", "trained"),
        ("0.weight", "frozen"),
        ("0.bias", "frozen"),
    ]


def test_tied_weights_travel_once_under_the_first_name() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    layout = layout_of(module, "job")
    assert layout.aliases == {"1.weight": "0.weight"}
    assert [tensor.name for tensor in layout.tensors] == ["0.weight", "0.bias", "1.bias"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_other_kinds_of_numbers_are_refused_with_the_remedy(dtype: torch.dtype) -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("odd", torch.zeros(2, dtype=dtype))
    with pytest.raises(LayoutMismatch, match=rf"tensor odd is {str(dtype)[6:]}.*module\.float\(\)"):
        layout_of(module, "job")


def test_memory_shared_in_part_is_refused() -> None:
    module = nn.Linear(4, 4)
    module.register_buffer("part", module.weight.detach()[:2])
    with pytest.raises(LayoutMismatch, match="part and weight share memory in part"):
        layout_of(module, "job")


def test_a_module_without_anything_to_train_is_refused() -> None:
    module = nn.Linear(2, 2)
    module.requires_grad_(False)
    with pytest.raises(LayoutMismatch, match="0 trained parameters"):
        layout_of(module, "job")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (nn.Linear(2, 3), "first at weight"),
        (nn.Linear(2, 2, bias=False), "number or names"),
        (nn.Sequential(nn.Linear(2, 2)), "first at weight"),
    ],
)
def test_a_model_of_another_form_is_refused(other: Any, words: str) -> None:
    module = nn.Linear(2, 2)
    layout = layout_of(module, "job")
    with pytest.raises(LayoutMismatch, match=words):
        load(other, layout, content(module, layout))
