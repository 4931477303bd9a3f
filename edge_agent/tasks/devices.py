"""Which processor a task trains on: CPU, or an accelerator that PyTorch finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from edge_agent.tasks import TaskError

if TYPE_CHECKING:
    from edge_agent.tasks import Task

KINDS: Final = ("cuda", "mps")  # in order of preference


def device_for(task: Task | type[Task], wanted: str) -> torch.device:
    """Where ``task`` trains here, if its owner says ``wanted``: "auto", "cpu" or one of `KINDS`.

    "auto" is the first accelerator that PyTorch finds, if the task can use it; else the CPU. Raises
    `TaskError` when a demanded accelerator is not there, or the task cannot use it.
    """
    accelerated = bool(getattr(task, "accelerated", False))
    found = [kind for kind in KINDS if _is_there(kind)]
    if wanted == "cpu" or (wanted == "auto" and not (found and accelerated)):
        return torch.device("cpu")
    remedy = 'set device = "auto" or "cpu" under [policy] in agent.toml'
    if wanted != "auto" and wanted not in found:
        raise TaskError(
            f"device = {wanted!r} is demanded, but PyTorch finds {' and '.join(found) or 'none'} here; "
            f"install the driver and PyTorch's build for it, or {remedy}"
        )
    if not accelerated:
        name = (task if isinstance(task, type) else type(task)).__name__
        raise TaskError(f"device = {wanted!r} is demanded, but {name} trains on the CPU only; {remedy}")
    kind = found[0] if wanted == "auto" else wanted
    if kind == "cuda":
        torch.backends.cudnn.deterministic = True
    return torch.device(kind)


def _is_there(kind: str) -> bool:
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
