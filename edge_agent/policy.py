"""What the device's owner allows: pure decisions about a request, each with its reason in words."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from edge_agent.config import Config
from schemas.events import Decline, TrainingRequest
from schemas.limits import TEXT_CHARS_MAX
from schemas.models import Layout

MODEL_COPIES: Final = 4  # the received model, the module, its gradients, the optimiser's momentum
WORKER_BYTES: Final = 192 << 20  # of a worker with PyTorch and no model


def decline(request: TrainingRequest, reason: str, text: str) -> Decline:
    """A decline of ``request``; ``reason`` is one of `schemas.events.DECLINE_REASONS`."""
    return Decline(job=request.job, request=request.request, reason=reason, text=text[:TEXT_CHARS_MAX])


def data_path(request: TrainingRequest, config: Config) -> str:
    """The file of the data set that the request names (by default the task's); empty if unknown."""
    return config.data.get(request.dataset or request.task, "")


def objection(
    request: TrainingRequest, layout: Layout, config: Config, installed: Collection[str]
) -> Decline | None:
    """Why this device won't train, or None. Whether the data can be read is asked elsewhere."""
    policy = config.policy
    if request.task not in policy.tasks:
        text = f"the owner allows {', '.join(policy.tasks) or 'no task'}, not {request.task}"
        return decline(request, "policy", f"{text}; they may add it to policy.tasks in agent.toml")
    if request.task not in installed:
        text = f"task {request.task} is not installed here; installed: {', '.join(installed) or 'none'}"
        if not installed:
            text += "; without PyTorch there is none: `pip install 'fedbus[agent]'` on the device"
        return decline(request, "task", text)
    if policy.power == "battery" and not policy.train_on_battery:
        text = "this device runs on battery and its owner does not allow training then"
        return decline(request, "policy", f"{text} (policy.train_on_battery)")
    if not data_path(request, config):
        text = f"no data set {request.dataset or request.task} here; its owner may add it under [data]"
        return decline(request, "data", f"{text} in agent.toml")
    copies = MODEL_COPIES + bool(request.local.proximal)  # FedProx keeps the model that came
    needed = WORKER_BYTES + copies * layout.model_bytes
    if policy.memory_bytes_max and needed > policy.memory_bytes_max:
        text = f"a model of {layout.model_bytes} bytes needs about {needed >> 20} MiB to train; the owner"
        return decline(request, "memory", f"{text} allows {policy.memory_bytes_max >> 20} MiB")
    return None
