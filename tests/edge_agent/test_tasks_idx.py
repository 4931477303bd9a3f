"""IDX files, the format of MNIST: found by folder or by name, read whole, refused when they are not sound."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge_agent.tasks import LocalSettings, TaskError
from edge_agent.tasks.vision import VisionTask
from schemas.jobs import TaskConfig
from tests.brokers import PACKAGES, require
from tests.edge_agent.training import built, no_pace

TRAIN, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
CONFIG: TaskConfig = {"shape": [2, 3], "classes": 3}
IMAGES = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)


def idx(values: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def labels(*numbers: int) -> bytes:
    return idx(np.array(numbers, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training and a test set, as they are fetched."""
    put(tmp_path, f"{TRAIN}.gz", idx(IMAGES))
    put(tmp_path, f"{LABELS}.gz", labels(0, 1, 2, 1))
    put(tmp_path, "t10k-images-idx3-ubyte", idx(IMAGES[:1]))
    put(tmp_path, "t10k-labels-idx1-ubyte", labels(2))
    return tmp_path


def test_of_a_folder_the_training_set_is_read(folder: Path) -> None:
    data = VisionTask(CONFIG).load(folder)
    assert np.array_equal(data.x.numpy(), IMAGES)
    assert (data.y.tolist(), data.scale) == ([0, 1, 2, 1], 255.0)
    assert VisionTask.inspect(folder) == {"samples": 4, "shape": "[2, 3]", "labels": "0 to 2"}


@pytest.mark.parametrize(
    ("name", "samples"), [(f"{TRAIN}.gz", 4), ("t10k-images-idx3-ubyte", 1), ("t10k-images.idx3-ubyte", 2)]
)
def test_a_file_of_images_is_read_with_the_labels_beside_it(folder: Path, name: str, samples: int) -> None:
    put(folder, "t10k-images.idx3-ubyte", idx(IMAGES[:2]))
    put(folder, "t10k-labels.idx1-ubyte.gz", labels(0, 1))
    assert len(VisionTask(CONFIG).load(folder / name).y) == samples


def test_an_unpacked_file_stands_for_its_archive(folder: Path) -> None:
    put(folder, TRAIN, idx(IMAGES[:2]))
    put(folder, LABELS, labels(2, 2))
    assert VisionTask(CONFIG).load(folder).y.tolist() == [2, 2]


def test_idx_data_train_to_the_same_bits_as_the_same_arrays(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "same.npz", x=IMAGES, y=np.array([0, 1, 2, 1]))
    task, trained = VisionTask(CONFIG), []
    for path in (folder, tmp_path / "same.npz"):
        model = built(task)
        task.train(model, task.load(path), LocalSettings(), no_pace)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*trained)


def only(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda folder: put(folder, name, content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            only(TRAIN, idx(IMAGES.reshape(4, 6))),
            "begins with 00 00 08 02, .* in 3 dimensions with 00 00 08 03",
        ),
        (only(TRAIN, b"\x00\x00\x0d\x03"), "begins with 00 00 0d 03"),
        (only(TRAIN, b""), "begins with nothing"),
        (only(TRAIN, idx(IMAGES)[:9]), "ends within its header"),
        (only(TRAIN, idx(IMAGES)[:-1]), "holds fewer than the 24 bytes that its header announces"),
        (only(TRAIN, idx(IMAGES) + b"x"), "holds more than the 24 bytes"),
        (only(TRAIN, struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31)), "holds fewer than"),
        (only(TRAIN, gzip.compress(idx(IMAGES))[:-9]), "is a damaged gzip file"),
        (only(TRAIN, b"\x1f\x8bnot really"), "is a damaged gzip file"),
        (only(TRAIN, idx(IMAGES[:3])), "holds 3 images, but train-labels-idx1-ubyte 4 labels"),
        (only(LABELS, labels(0, 1, 2, 3)), "label 3 of sample 3 is outside 0 to 2"),
        (only("train-b-images-idx3-ubyte", idx(IMAGES)), "several files of images .*give the path of one"),
        (lambda folder: (folder / LABELS).unlink(), f"its labels are not beside it; put {LABELS}"),
        (lambda folder: (folder / TRAIN).unlink(), "no file of images in the IDX format"),
    ],
)
def test_a_pair_that_is_not_sound_is_refused_with_the_cause(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    put(tmp_path, TRAIN, idx(IMAGES))
    put(tmp_path, LABELS, labels(0, 1, 2, 1))
    change(tmp_path)
    with pytest.raises(TaskError, match=words) as refused:
        VisionTask(CONFIG).load(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_the_path_of_the_labels_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(TaskError, match="holds labels; give the path of the images"):
        VisionTask(CONFIG).load(folder / f"{LABELS}.gz")


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    put(tmp_path, LABELS, labels(0))
    with pytest.raises(TaskError, match=f"{TRAIN}: no such file"):
        VisionTask(CONFIG).load(tmp_path / TRAIN)


def test_debians_fashion_mnist_is_learned_as_it_is_installed() -> None:
    require("dataset-fashion-mnist")
    task = VisionTask({"shape": [28, 28], "classes": 10})
    data = task.load(Path(PACKAGES["dataset-fashion-mnist"]))
    assert data.x.shape == (60_000, 28, 28)
    model = built(task)
    task.train(model, data, LocalSettings(batch_size=64, steps_max=300), no_pace)
    assert task.evaluate(model, data)["accuracy"] > 0.75
