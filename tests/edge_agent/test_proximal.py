"""FedProx on the device: steps are pulled back towards the model that came."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from torch import nn

from edge_agent.tasks.vision import VisionTask
from schemas.jobs import LocalSettings
from tests.edge_agent.test_tasks_vision import DIGITS, digits
from tests.edge_agent.training import built, no_pace


def test_the_proximal_term_is_the_gradient_of_the_distance_to_the_model_that_came(
    tmp_path: Path,
) -> None:
    """Two steps by hand: in the first one w is the model that came, so only the second is pulled back."""
    task = VisionTask(DIGITS)
    data = task.load(digits(tmp_path / "digits.npz"))
    mu, rate = 0.5, 0.1
    settings = LocalSettings(batch_size=16, learning_rate=rate)

    def after(steps: int, proximal: float) -> torch.Tensor:
        model = built(task)
        chosen = msgspec.structs.replace(settings, steps_max=steps, proximal=proximal)
        task.train(model, data, chosen, no_pace)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    received = nn.utils.parameters_to_vector(built(task).parameters()).detach()
    one = after(1, 0.0)
    assert torch.equal(after(1, mu), one)
    torch.testing.assert_close(after(2, mu), after(2, 0.0) - rate * mu * (one - received))
    assert (after(40, 5.0) - received).norm() < (after(40, 0.0) - received).norm() / 2
