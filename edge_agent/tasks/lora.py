"""LoRA: Hu et al. 2022, "LoRA: low-rank adaptation of large language models", section 4.1.

A linear layer keeps its weight W as it came, and learns B·A of a low rank r: y = W·x + b + α/r · B·A·x. A
begins Gaussian, B with 0, so that a model with new adapters is the one without.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional, init

from edge_agent.tasks import TaskError


class Adapted(nn.Module):
    """A linear layer with an adapter; its own tensors keep their names."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        init.normal_(self.lora_a, std=linear.in_features**-0.5)
        self._scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """The module's y."""
        low = functional.linear(functional.linear(x, self.lora_a), self.lora_b)
        return functional.linear(x, self.weight, self.bias) + self._scale * low


def adapt(model: nn.Module, rank: int, alpha: float) -> nn.Module:
    """``model``, frozen, with an adapter at each of its linear layers, which alone are trained.

    They may be missing where the model's parameters come from a file (``begin_anew``). Raises `TaskError` for
    a rank that saves nothing.
    """
    model.requires_grad_(requires_grad=False)
    anew = []
    for name, part in list(model.named_children()):
        if isinstance(part, nn.Linear):
            if rank > min(part.in_features, part.out_features):
                raise TaskError(
                    f"lora_rank = {rank} is more than layer {name} has inputs or outputs "
                    f"({part.in_features} and {part.out_features}): it would save nothing; lower it"
                )
            setattr(model, name, Adapted(part, rank, alpha))
            anew += [f"{name}.lora_a", f"{name}.lora_b"]
    model.begin_anew = frozenset(anew)  # type: ignore[assignment]  # no tensor: for `edge_agent.tensors`
    return model
