"""What the device's owner did not allow is declined, in words that help the owner."""

from __future__ import annotations

from msgspec.structs import replace

from edge_agent.listen import Gate
from edge_agent.policy import data_path
from schemas.events import Accept
from tests.edge_agent.door import Door, refused
from tests.edge_agent.party import CONFIG


def test_data_set_unknown() -> None:
    door = Door()
    door.party.config = replace(CONFIG, data={})
    refused(door.admit(door.request(door.model())), "data", "no data set vision", "[data]", "agent.toml")


def test_task_not_installed() -> None:
    door = Door()
    gate = Gate(door.party.machine.files, door.party.identity, door.ledger, CONFIG, lambda: ["tabular"])
    refused(gate.admit(door.request(door.model())), "task", "vision is not installed", "tabular")


def test_no_task_installed_at_all_names_the_usual_cause() -> None:
    door = Door()
    gate = Gate(door.party.machine.files, door.party.identity, door.ledger, CONFIG, list)
    refused(gate.admit(door.request(door.model())), "task", "PyTorch", "pip install 'fedbus[agent]'")


def test_training_not_allowed_on_battery() -> None:
    door = Door()
    policy = replace(CONFIG.policy, power="battery")
    door.party.config = replace(CONFIG, policy=policy)
    refused(door.admit(door.request(door.model())), "policy", "battery", "policy.train_on_battery")
    door.party.config = replace(CONFIG, policy=replace(policy, train_on_battery=True))
    assert isinstance(door.admit(door.request(door.model(version=1), number=2)), Accept)


def test_model_too_large_for_the_owners_memory() -> None:
    door = Door()
    door.party.config = replace(CONFIG, policy=replace(CONFIG.policy, memory_bytes_max=100 << 20))
    refused(door.admit(door.request(door.model())), "memory", "needs about", "100 MiB")


def test_data_set_of_a_request_defaults_to_its_task() -> None:
    door = Door()
    request = door.request(door.model())
    assert data_path(request, CONFIG) == "/data/vision.npz"
    assert data_path(replace(request, dataset="other"), CONFIG) == ""
