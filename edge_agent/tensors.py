"""Between a PyTorch module and a model's bytes in the order of its layout. For the worker only.

See `schemas.models` for what travels.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edge_agent.tasks import TaskError
from schemas.errors import LayoutMismatch
from schemas.jobs import Personal
from schemas.models import ITEM_BYTES, ORDER, Layout, Role, Tensor, controls_of

DTYPES: Final = {
    torch.float32: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
NAMED: Final = {name: dtype for dtype, name in DTYPES.items()}


def layout_of(
    module: nn.Module, job: str, personal: Collection[str] = (), *, controlled: bool = False
) -> Layout:
    """The layout of ``module`` by the rules of `schemas.models`; the tensors named in ``personal`` stay on
    the device, and with ``controlled`` there are control tensors. Raises `LayoutMismatch`.

    Only the ``state_dict`` counts: what a module doesn't keep there doesn't travel.
    """
    tensors: list[Tensor] = []
    aliases: dict[str, str] = {}
    first: dict[int, tuple[str, Any]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) or value.dtype not in DTYPES:
            what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise LayoutMismatch(
                f"tensor {name} is {str(what).removeprefix('torch.')}; a model travels in float32 and "
                f"whole numbers: convert it (`module.float()`)"
            )
        view = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        memory = value.untyped_storage().data_ptr()
        if value.numel() and memory in first:
            other, known = first[memory]
            if view != known:
                raise LayoutMismatch(f"tensors {name} and {other} share memory in part; share all or none")
            aliases[name] = other
            continue
        first[memory] = (name, view)
        tensors.append(Tensor(name, list(value.shape), DTYPES[value.dtype], _role(value, name in personal)))  # type: ignore[arg-type]
    tensors += controls_of(tensors) if controlled else []
    layout = Layout(job=job, tensors=sorted(tensors, key=lambda t: ORDER[t.role]), aliases=aliases)
    layout.check()
    return layout


def load(module: nn.Module, layout: Layout, model: bytearray) -> None:
    """Set all tensors of ``module`` from a model's bytes. Raises `LayoutMismatch` if it has another form."""
    personal = {tensor.name for tensor in layout.tensors if tensor.role == "personal"}
    own = layout_of(module, layout.job, personal, controlled=layout.control_count > 0)
    if own != layout:
        differing = [a.name for a, b in zip(layout.tensors, own.tensors, strict=False) if a != b]
        where = f"first at {differing[0]}" if differing else "in number or names of its tensors"
        raise LayoutMismatch(
            f"the task's model differs from the job's ({where}); "
            f"install the version of the task that the job was made with"
        )
    if len(model) != layout.model_bytes:
        raise LayoutMismatch(f"a model of {len(model)} bytes where the layout needs {layout.model_bytes}")
    state = module.state_dict()
    with torch.no_grad():
        for tensor, at in _places(layout):
            state[tensor.name].copy_(_view(model, tensor, at))


def model_parts(module: nn.Module, layout: Layout) -> list[torch.Tensor]:
    """The tensors of ``module`` in layout order, each flat and contiguous (a copy only if it has to be);
    control tensors are 0."""
    state = module.state_dict()
    return [
        state[tensor.name].contiguous().view(-1) if tensor.role != "control" else torch.zeros(tensor.items)
        for tensor in layout.tensors
    ]


def subtract_base(module: nn.Module, layout: Layout, base: bytearray) -> memoryview:
    """Turn the model ``base`` into the delta (trained minus base), in place; what it returns is that part.

    In place, because a large model is held twice already: here and in the module. Counters are left out:
    what a device counted stays on it.
    """
    state = module.state_dict()
    for tensor, at in _places(layout):
        if tensor.role == "trained":
            view = _view(base, tensor, at)
            torch.sub(state[tensor.name].cpu(), view, out=view)
            if not bool(torch.isfinite(view).all()):
                raise TaskError(f"training diverged: {tensor.name} is NaN or infinite; lower the rate")
    return memoryview(base)[: 4 * layout.trained_count]


def load_parameters(module: nn.Module, layout: Layout, path: Path) -> None:
    """Set all tensors of ``module`` from a safetensors file; those of its ``begin_anew``, if it has that, may
    be missing there. Raises `LayoutMismatch` naming the tensor."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LayoutMismatch(f"{path}: is no safetensors file that can be read: {error}") from error
    state, anew = module.state_dict(), getattr(module, "begin_anew", ())
    for tensor in layout.tensors:
        if tensor.role == "control" or (tensor.name in anew and tensor.name not in found):
            continue
        value = found.pop(tensor.name, None)
        if value is None or list(value.shape) != tensor.shape or DTYPES.get(value.dtype) != tensor.dtype:
            form = "missing" if value is None else f"{value.dtype} {list(value.shape)}"
            raise LayoutMismatch(
                f"{path}: {tensor.name} is {form}; the task's model has {tensor.dtype} {tensor.shape}"
            )
        state[tensor.name].copy_(value)
    extra = sorted(set(found) - set(layout.aliases))
    if extra:
        raise LayoutMismatch(f"{path}: holds {extra[0]}, which the task's model has not")


def personal_names(module: nn.Module, personal: Personal) -> set[str]:
    """The tensors of ``module`` that stay on the device. Raises `LayoutMismatch` for a pattern of none."""
    found: set[str] = set()
    names = [tensor.name for tensor in layout_of(module, "any").tensors if tensor.role == "trained"]
    for pattern in personal.layers:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise LayoutMismatch(
                f"personal.layers: {pattern!r} is no trained tensor of the model; its are {', '.join(names)}"
            )
        found.update(matching)
    if personal.batch_norm:
        norms = [name for name, part in module.named_modules() if isinstance(part, _BatchNorm)]
        if not norms:
            raise LayoutMismatch("personal.batch_norm: the model has no batch normalisation; leave it out")
        found.update(name for name in names if name.rpartition(".")[0] in norms)
    return found


def personal_parts(module: nn.Module, layout: Layout) -> list[torch.Tensor]:
    """As `model_parts`, those tensors that stay on the device. Raises `TaskError` if one is not finite."""
    found = []
    for tensor, part in zip(layout.tensors, model_parts(module, layout), strict=True):
        if tensor.role == "personal":
            if not bool(torch.isfinite(part).all()):
                raise TaskError(f"training diverged: {tensor.name} is NaN or infinite; lower the rate")
            found.append(part.cpu())
    return found


def load_personal(module: nn.Module, layout: Layout, kept: bytes) -> None:
    """Set the tensors that stay on the device to what it kept: all of them, in layout order."""
    state, at, raw = module.state_dict(), 0, bytearray(kept)
    for tensor in layout.tensors:
        if tensor.role == "personal" and tensor.items:
            state[tensor.name].copy_(_view(raw, tensor, at))
            at += tensor.size_bytes


def _role(value: torch.Tensor, personal: bool) -> Role:
    if value.dtype is not torch.float32:
        return "counter"
    if isinstance(value, nn.Parameter) and not value.requires_grad:
        return "frozen"
    return "personal" if personal else "trained"


def _places(layout: Layout) -> list[tuple[Tensor, int]]:
    """Where the module's tensors stand that hold anything."""
    places, at = [], 0
    for tensor in layout.tensors:
        if tensor.items and tensor.role != "control":
            places.append((tensor, at))
        at += tensor.size_bytes
    return places


def _view(model: bytearray, tensor: Tensor, at: int) -> torch.Tensor:
    # A bool tensor can't be a view of bytes that are neither 0 nor 1; a copy from uint8 can.
    dtype = NAMED["uint8" if tensor.dtype == "bool" else tensor.dtype]
    if at % ITEM_BYTES[tensor.dtype]:
        flat = torch.frombuffer(bytearray(memoryview(model)[at : at + tensor.size_bytes]), dtype=dtype)
    else:
        flat = torch.frombuffer(model, dtype=dtype, count=tensor.items, offset=at)
    return flat.view(tensor.shape)
