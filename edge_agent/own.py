"""A worker's side of what stays on the device: its personal layers, and its control variate of SCAFFOLD.

SCAFFOLD (Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning",
algorithm 1, option II): each gradient g of training becomes g - cᵢ + c, and after K steps at the rate η, that
changed the model by δ, cᵢ ← cᵢ - c - δ / (K·η). c comes with the model, as tensors of the role ``control``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from broker.ports import Files
from edge_agent import private
from edge_agent.tasks import TaskError
from edge_agent.tensors import load_personal, personal_parts
from schemas import work


class Own:
    """Of one training. Made when ``module`` is on its processor, with the model that it was set from."""

    def __init__(self, files: Files, order: work.Train, module: nn.Module, model: bytearray) -> None:
        self._files = files
        self._order = order
        self._module = module
        layout = order.layout
        kept = self._kept()
        border = 4 * layout.control_count
        if kept and layout.personal_count:
            load_personal(module, layout, kept[border:])
        start = 4 * layout.trained_count
        self._global = _floats(bytes(model[start : start + border]))
        self._control = _floats(kept[:border]) if kept else torch.zeros_like(self._global)
        if layout.control_count:
            self._correct()

    def _kept(self) -> bytes:
        path = Path(self._order.private)
        if not self._order.private or not self._order.layout.private_count:
            return b""
        kept = private.read(self._files, path, self._order.layout)
        if not kept and self._files.exists(path):
            sys.stderr.write(f"{path}: damaged, or of another model; what it held begins anew\n")
        return kept

    def _correct(self) -> None:
        """Have c - cᵢ added to each gradient of what is trained."""
        parameters, at = dict(self._module.named_parameters()), 0
        for tensor in self._order.layout.tensors:
            if tensor.role != "trained":
                break
            parameter = parameters.get(tensor.name)
            if parameter is not None and tensor.items:
                part = slice(at, at + tensor.items)
                correction = (self._global[part] - self._control[part]).view(tensor.shape)
                parameter.register_hook(correction.to(parameter.device).add)  # type: ignore[no-untyped-call]
            at += tensor.items

    def leave(self, delta: memoryview, steps: int) -> None:
        """Write what the next round begins with beside the update that is being made, if there is anything.

        Raises `TaskError` when it is not finite.
        """
        layout = self._order.layout
        if not layout.private_count:
            return
        parts = personal_parts(self._module, layout)
        if layout.control_count:
            if steps < 1:
                raise TaskError(f"{steps} steps of training: SCAFFOLD needs one at least")
            rate = steps * self._order.local.learning_rate
            control = self._control - self._global - torch.frombuffer(delta, dtype=torch.float32) / rate
            if not bool(torch.isfinite(control).all()):
                raise TaskError("training diverged: the control variate is NaN or infinite; lower the rate")
            parts = [control, *parts]
        raw = [part.numpy().data.cast("B") for part in parts if part.numel()]
        private.write(self._files, Path(self._order.out_dir) / work.PRIVATE_FILE, layout, raw)


def _floats(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.float32) if data else torch.zeros(0)
