"""The vision task: same seed same bits, honest errors, a held-out part that stays out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from edge_agent.tasks import LocalSettings, TaskError
from edge_agent.tasks.classification import Samples, split
from edge_agent.tasks.vision import VisionTask
from schemas.jobs import TaskConfig
from tests.edge_agent.training import bits, built, no_pace

DIGITS: TaskConfig = {"model": "mlp", "shape": [8, 8], "classes": 10, "hidden": 64, "scale": 16}
SMALL: TaskConfig = {"shape": [4], "classes": 3}


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def digits(path: Path, samples: int = 400) -> Path:
    data = load_digits()
    return save(path, x=data.images[:samples].astype(np.uint8), y=data.target[:samples])


@pytest.fixture
def task() -> VisionTask:
    return VisionTask(DIGITS)


@pytest.fixture
def data(task: VisionTask, tmp_path: Path) -> Samples:
    return task.load(digits(tmp_path / "digits.npz"))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (DIGITS, 4_810),
        ({"shape": [4], "classes": 3, "hidden": []}, 4 * 3 + 3),
        ({"shape": [4], "classes": 3, "hidden": [5, 6]}, 4 * 5 + 5 + 5 * 6 + 6 + 6 * 3 + 3),
        ({"shape": [28, 28], "classes": 10, "model": "cnn"}, 160 + 4_640 + 32 * 49 * 10 + 10),
        ({"shape": [3, 28, 28], "classes": 10, "model": "cnn"}, 448 + 4_640 + 32 * 49 * 10 + 10),
    ],
)
def test_models_have_the_configured_parameters_and_no_other_state(config: TaskConfig, count: int) -> None:
    model = built(VisionTask(config))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert isinstance(config["shape"], list)
    assert model(torch.zeros(2, *map(int, config["shape"]))).shape == (2, config["classes"])


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_equal_seeds_and_settings_give_equal_bits_and_others_do_not(tmp_path: Path, model: str) -> None:
    task = VisionTask({"model": model, "shape": [8, 8], "classes": 10, "scale": 16})
    data = task.load(digits(tmp_path / "digits.npz", 100))

    def trained(model_seed: int = 1, **changes: float) -> bytes:
        network = built(task, model_seed)
        task.train(network, data, msgspec.structs.replace(LocalSettings(batch_size=8), **changes), no_pace)
        return bits(network)

    assert trained() == trained()
    changed = [trained(model_seed=2), trained(seed=2), trained(momentum=0.9), trained(weight_decay=0.1)]
    assert len({trained(), *changed}) == 5


def test_training_lowers_the_loss_on_held_out_digits(task: VisionTask, data: Samples) -> None:
    model = built(task)
    before = task.evaluate(model, data)
    trained = task.train(model, data, LocalSettings(epochs=5, batch_size=16), no_pace)
    after = task.evaluate(model, data)
    assert after["loss"] < before["loss"] / 2
    assert after["accuracy"] > 0.8 > before["accuracy"]
    assert trained.metrics["loss"] < before["loss"]


def test_pace_is_called_once_after_each_step_and_the_small_last_batch_counts(
    task: VisionTask, data: Samples
) -> None:
    model = built(task)
    seen = [bits(model)]
    settings = LocalSettings(epochs=2, batch_size=50)
    trained = task.train(model, data, settings, lambda: seen.append(bits(model)))
    assert trained.steps == 2 * math.ceil(360 / 50) == len(seen) - 1
    assert len(set(seen)) == len(seen)  # each call saw the parameters moved by its step
    assert trained.samples == data.train_samples == 360


@pytest.mark.parametrize(("steps_max", "steps"), [(1, 1), (23, 23), (24, 24), (46, 46), (99, 46), (0, 46)])
def test_steps_max_ends_training(task: VisionTask, data: Samples, steps_max: int, steps: int) -> None:
    settings = LocalSettings(epochs=2, batch_size=16, steps_max=steps_max)
    trained = task.train(built(task), data, settings, no_pace)
    assert trained.steps == steps
    assert math.isfinite(trained.metrics["loss"])


def test_an_error_raised_by_pace_ends_training(task: VisionTask, data: Samples) -> None:
    def out_of_time() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        task.train(built(task), data, LocalSettings(), out_of_time)


def test_diverging_training_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    task = VisionTask(SMALL)
    data = task.load(save(tmp_path / "huge.npz", x=np.full((9, 4), 1e30), y=np.arange(9) % 3))
    with pytest.raises(TaskError, match=r"training diverged: the loss is \S+ at step 2; lower learning_rate"):
        task.train(built(task), data, LocalSettings(epochs=2), no_pace)


def test_a_last_step_that_diverges_is_an_error(task: VisionTask, data: Samples) -> None:
    model = built(task)
    with torch.no_grad():  # the loss is still finite, but weight decay doubles what is near the largest float
        for parameter in model.parameters():
            parameter.zero_()
        next(model.parameters()).fill_(-3e38)
    settings = LocalSettings(learning_rate=3, weight_decay=1, steps_max=1)
    with pytest.raises(
        TaskError, match=r"the last step made parameters infinite or NaN; lower learning_rate = 3"
    ):
        task.train(model, data, settings, no_pace)


def test_evaluation_is_of_the_held_out_part_and_changes_nothing(task: VisionTask, data: Samples) -> None:
    model = built(task).train()
    before = bits(model)
    metrics = task.evaluate(model, data)
    assert model.training
    assert bits(model) == before
    x, y = data.x[data.held_out].float() / 16, data.y[data.held_out]
    assert (metrics["samples"], metrics["held_out"]) == (40, 1)
    assert metrics["accuracy"] == pytest.approx((model(x).argmax(dim=1) == y).float().mean().item())
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-5)


def test_without_a_held_out_part_evaluation_uses_all_samples_and_says_so(tmp_path: Path) -> None:
    task = VisionTask({**DIGITS, "held_out": 0})
    metrics = task.evaluate(built(task), task.load(digits(tmp_path / "digits.npz", 50)))
    assert (metrics["samples"], metrics["held_out"]) == (50, 0)


def test_evaluating_a_diverged_model_is_an_error(task: VisionTask, data: Samples) -> None:
    model = built(task)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(TaskError, match="the model's loss is nan"):
        task.evaluate(model, data)


@given(st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9]))
def test_held_out_and_training_part_are_disjoint_complete_and_stable(samples: int, held_out: float) -> None:
    train, kept = split(samples, held_out)
    assert sorted([*train.tolist(), *kept.tolist()]) == list(range(samples))
    assert len(train) >= 1
    assert (len(kept) > 0) == (held_out > 0 and samples > 1)
    assert split(30, 0.1)[1].tolist() == [12, 18, 20]  # in every release and on every machine


def test_training_never_reads_held_out_samples(task: VisionTask, data: Samples) -> None:
    one, two = built(task), built(task)
    task.train(one, data, LocalSettings(), no_pace)
    data.x[data.held_out] = 16
    data.y[data.held_out] = 0
    task.train(two, data, LocalSettings(), no_pace)
    assert bits(one) == bits(two)


def test_bytes_are_divided_by_255_and_floats_by_1_unless_told(tmp_path: Path) -> None:
    as_bytes = save(tmp_path / "b.npz", x=np.full((2, 4), 51, np.uint8), y=[0, 1])
    as_float = save(tmp_path / "f.npz", x=np.full((2, 4), 0.5, ">f8"), y=np.array([0, 1], ">u2"))
    cases = [(None, as_bytes, 0.2), (None, as_float, 0.5), (17.0, as_bytes, 3.0), (0.25, as_float, 2.0)]
    for scale, path, value in cases:
        x, labels = VisionTask({**SMALL, "scale": scale}).load(path).batch(torch.arange(2))
        assert torch.equal(x, torch.full((2, 4), value))
        assert labels.tolist() == [0, 1]


def write_damaged(path: Path) -> None:
    content = bytearray(save(path, x=np.zeros((50, 4), np.float32), y=np.zeros(50, np.int64)).read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(content)


def write_bare(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((5, 4)))


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: None, "no such file; correct the path"),
        (
            Path.touch,
            r"is not an npz file of plain arrays \(No data left in file\); write it with numpy\.savez",
        ),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "is not an npz file of plain arrays"),
        (write_damaged, "is not an npz file of plain arrays .*CRC"),
        (write_bare, "holds one bare array, not an npz archive"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, write: Callable[[Path], Any], text: str) -> None:
    write(tmp_path / "bad.npz")
    with pytest.raises(TaskError, match=rf"bad\.npz: {text}"):
        VisionTask(SMALL).load(tmp_path / "bad.npz")


def test_pickled_objects_are_refused_unopened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = save(tmp_path / "objects.npz", x=np.array([Trap()], dtype=object), y=np.array([0]))
    with pytest.raises(TaskError, match="allow_pickle"):
        VisionTask(SMALL).load(path)
    assert not (tmp_path / "ran").exists()


X, Y = np.zeros((3, 4), np.float32), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": X}, r"holds \['x'\], but x and y are needed"),
        ({}, "holds nothing, but x and y are needed"),
        ({"x": X.astype(np.int64), "y": Y}, "x is int64; store it as uint8 or as a float type"),
        ({"x": X, "y": Y.astype(float)}, "y is float64 of shape"),
        ({"x": X, "y": Y.reshape(3, 1)}, r"y is int64 of shape \(3, 1\)"),
        ({"x": X[:0], "y": Y[:0]}, "holds no samples"),
        ({"x": X[:2], "y": Y}, r"x has shape \(2, 4\), but there are 3 labels; store one per sample"),
        ({"x": X.reshape(3, 2, 2), "y": Y}, r"a sample has shape \[2, 2\], the job's shape is \[4\]"),
        ({"x": X, "y": np.array([0, 3, 1])}, "label 3 of sample 1 is outside 0 to 2; .* classes = 3"),
        ({"x": X, "y": np.array([0, 1, -1], np.int8)}, "label -1 of sample 2 is outside 0 to 2"),
        ({"x": X, "y": np.array([0, 1, 2**64 - 1], np.uint64)}, "label 18446744073709551615 of sample 2"),
        ({"x": X * math.nan, "y": Y}, "3 of 3 samples hold NaN .* first is sample 0"),
        ({"x": np.vstack([X[:2], X[2:] + math.inf]), "y": Y}, "1 of 3 samples hold NaN .* first is sample 2"),
        ({"x": X.astype(np.float64) + 1e300, "y": Y}, "3 of 3 samples hold NaN or infinite values"),
    ],
)
def test_unfit_arrays_are_refused_naming_the_cause(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(TaskError, match=rf"bad\.npz: {text}"):
        VisionTask(SMALL).load(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour": "red"}, "unknown key colour = 'red'; the keys are model, shape"),
        ({"model": "vit"}, 'model = \'vit\' is not allowed; give "mlp" or "cnn"'),
        ({"shape": []}, r"shape = \[\] is not allowed; give a list of 1 to 3 sizes"),
        ({"shape": [65_536, 65_536]}, r"shape = \[65536, 65536\] has more than \d+ values"),
        ({"classes": 1}, "classes = 1 is not allowed; give a whole number from 2"),
        ({"classes": True}, "classes = True is not allowed"),
        ({"scale": math.nan}, "scale = nan is not allowed; give a number above 0"),
        ({"held_out": 1.0}, "held_out = 1.0 is not allowed"),
        ({"model": "cnn", "shape": [28, 28]}, "hidden = 64 is not allowed with model = 'cnn'"),
        ({"model": "cnn", "shape": [3, 28, 3], "hidden": None}, "does not suit .* H and W at least 4"),
    ],
)
def test_a_bad_configuration_names_key_value_and_what_is_allowed(change: TaskConfig, text: str) -> None:
    with pytest.raises(TaskError, match=text):
        VisionTask({**DIGITS, **change})


@pytest.mark.parametrize("key", ["shape", "classes"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(TaskError, match=f"{key} is missing; give"):
        VisionTask({name: value for name, value in DIGITS.items() if name != key})


def test_inspect_tells_what_a_file_holds_without_a_job(tmp_path: Path) -> None:
    found = VisionTask.inspect(save(tmp_path / "some.npz", x=X, y=Y))
    assert found == {"samples": 3, "shape": "[4]", "labels": "0 to 2"}
    with pytest.raises(TaskError, match="3 of 3 samples hold NaN"):
        VisionTask.inspect(save(tmp_path / "bad.npz", x=X * math.nan, y=Y))
