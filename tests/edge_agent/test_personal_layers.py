"""Personal layers: trained and measured on the device, in no update, and the same in every version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from broker.system import system_ports
from broker.worker import WorkerLink
from edge_agent import private
from edge_agent.tensors import layout_of, load_personal, personal_names, personal_parts
from schemas import work
from schemas.envelope import Sealed
from schemas.errors import LayoutMismatch
from schemas.events import Update
from schemas.jobs import Personal
from tests.edge_agent.federation import JOB, Federation, Model, open_update
from tests.edge_agent.test_worker import data
from tests.edge_agent.training import CONFIG, READER, train_order

__all__ = ["data"]

FILES = system_ports().files
HEAD = Personal(layers=["output.*"])


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("personal", "own"),
    [
        (Personal(layers=["2.*"]), {"2.weight", "2.bias"}),
        (Personal(layers=["?.bias", "0.w*"]), {"0.bias", "1.bias", "2.bias", "0.weight"}),
        (Personal(batch_norm=True), {"1.weight", "1.bias", "1.running_mean", "1.running_var"}),
        (Personal(), set()),
    ],
)
def test_what_matches_is_personal_and_comes_behind_what_is_trained(personal: Personal, own: set[str]) -> None:
    module = net()
    layout = layout_of(module, JOB, personal_names(module, personal))
    assert {tensor.name for tensor in layout.tensors if tensor.role == "personal"} == own
    assert layout.trained_count + layout.personal_count == layout_of(module, JOB).trained_count


@pytest.mark.parametrize(
    ("personal", "told"),
    [
        (Personal(layers=["head.*"]), r"'head\.\*' is no trained tensor of the model; its are 0\.weight"),
        (Personal(layers=["0.weight"]), r"'0\.weight' is no trained"),
        (Personal(batch_norm=True), "no batch normalisation"),
    ],
)
def test_what_matches_nothing_that_is_trained_is_refused(personal: Personal, told: str) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    module[0].requires_grad_(False)
    if "0.weight" not in personal.layers:
        module[0].requires_grad_(True)
    with pytest.raises(LayoutMismatch, match=told):
        personal_names(module, personal)


def test_what_was_kept_comes_back_into_its_layers() -> None:
    module, other = net(), net()
    layout = layout_of(module, JOB, personal_names(module, Personal(batch_norm=True, layers=["2.bias"])))
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(1)
    load_personal(other, layout, b"".join(part.numpy().tobytes() for part in personal_parts(module, layout)))
    for tensor in layout.tensors:
        same = torch.equal(module.state_dict()[tensor.name], other.state_dict()[tensor.name])
        assert same == (tensor.role == "personal" or tensor.items == 0), tensor.name


async def made(link: WorkerLink, tmp_path: Path) -> Model:
    out = tmp_path / "model.bin"
    order = work.Make(job=JOB, task="vision", config=CONFIG, seed=5, out=str(out), personal=HEAD)
    reply = await link.call(order)
    assert isinstance(reply, work.Made), reply
    return Federation().model(reply.layout, out.read_bytes())


async def round_of(link: WorkerLink, order: work.Train) -> Update:
    """One update; what was left beside it takes its place, as the agent does it."""
    reply = await link.call(order)
    assert isinstance(reply, work.Trained), reply
    out = Path(order.out_dir)
    (out / work.PRIVATE_FILE).rename(order.private)
    sealed = Sealed(reply.clear, reply.seal, (out / work.BODY_FILE).read_bytes())
    update, content = open_update(sealed, b"", READER, Federation().member().signing)
    assert len(content) == 4 * order.layout.trained_count
    return update


@pytest.mark.usefixtures("installed_tasks")
async def test_a_device_goes_on_with_its_own_layers_and_measures_with_them(
    link: WorkerLink, tmp_path: Path, data: Path
) -> None:
    model = await made(link, tmp_path)
    layout = model.layout
    first = layout.tensors[0]
    assert (first.role, layout.personal_count) == ("trained", 32 * 3 + 3)
    order = replace(train_order(model, tmp_path, data), private=str(tmp_path / "kept"))
    before = await round_of(link, order)
    kept = private.read(FILES, tmp_path / "kept", layout)
    own = np.frombuffer(kept, "<f4")
    begun = np.frombuffer(model.content, "<f4")[layout.trained_count :]
    assert np.abs(own - begun).max() > 0
    after = await round_of(link, order)  # on the same version
    assert after.evaluation["loss"] < before.evaluation["loss"]
    assert private.read(FILES, tmp_path / "kept", layout) != kept
    (tmp_path / "kept").write_bytes(b"harmed")
    anew = await round_of(link, order)
    assert anew.evaluation == before.evaluation
    assert private.read(FILES, tmp_path / "kept", layout) == kept
    assert "begins anew" in (tmp_path / "worker.log").read_text()


@pytest.mark.usefixtures("installed_tasks")
async def test_a_pattern_that_fits_nothing_is_told_before_any_device_is_asked(
    link: WorkerLink, tmp_path: Path
) -> None:
    order = work.Make(
        job=JOB,
        task="vision",
        config=CONFIG,
        seed=5,
        out=str(tmp_path / "m"),
        personal=Personal(layers=["head.*"]),
    )
    reply = await link.call(order)
    assert isinstance(reply, work.Problem)
    assert "'head.*' is no trained tensor" in reply.text
