"""A worker on a machine with an accelerator: a PyTorch backend "toy" that computes on the CPU.

It refuses to mix its tensors with others, as a real one does. Started in place of `edge_agent.worker`; what
it computed stands on standard error. The backend cannot be unregistered: never import this into a test.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import library
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

from edge_agent import worker

NAME = "toy"
COPIES = {"aten::copy_", "aten::_copy_from"}
told: set[str] = set()


class OnToy(torch.Tensor):
    """A tensor of the accelerator; `raw` is its memory."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(f"{NAME}:0"),
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return computed(op, *args, **(kwargs or {}))


def computed(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The operation on the memory of its tensors; what comes out is on the accelerator again."""
    name = op.name().split(".")[0]
    if name not in told:
        told.add(name)
        sys.stderr.write(f"{NAME}: {name}\n")
    known: dict[int, OnToy] = {}

    def raw(value: Any) -> Any:
        if isinstance(value, OnToy):
            known[id(value.raw)] = value
            return value.raw
        if isinstance(value, torch.Tensor) and value.dim() and name not in COPIES:
            raise RuntimeError(f"{name}: a tensor on {value.device} among those on {NAME}")
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def on_toy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else OnToy(value)

    raw_args, raw_kwargs = tree_map(raw, args), tree_map(raw, kwargs)
    if name == "aten::_copy_from":
        raw_args[1].copy_(raw_args[0])
        return args[1]
    out = op(*raw_args, **raw_kwargs)
    leaves = name == "aten::_to_copy" and kwargs.get("device") == torch.device("cpu")
    return out if leaves else tree_map(on_toy, out)


def main() -> None:
    """Serve as a worker whose owner wants the accelerator."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    kernels: Any = library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    kernels.fallback(computed, "PrivateUse1")
    worker.device_for = lambda task, wanted: torch.device(NAME)  # type: ignore[attr-defined]
    worker.serve()


if __name__ == "__main__":
    main()
