"""The demo's split: complete, without leaks, repeatable."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits

from coordinator.demo.data import (
    ALPHA,
    CENTRALISED_LEARNING_RATE,
    DEVICE_SAMPLES_MIN,
    DEVICES,
    FEDERATED,
    LOCAL_ONLY_LEARNING_RATE,
    DemoDataError,
    make_digits,
)
from schemas.jobs import LocalPlan

ROOT = Path(__file__).parents[2]

Array = npt.NDArray[Any]


def arrays(path: Path) -> tuple[Array, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return archive["x"], archive["y"]


def rows(*paths: Path) -> list[bytes]:
    """Every sample of the files as bytes of image and label, sorted."""
    return sorted(
        image.tobytes() + label.tobytes()
        for path in paths
        for image, label in zip(*arrays(path), strict=True)
    )


def test_devices_and_test_hold_every_digit_exactly_once(tmp_path: Path) -> None:
    data = make_digits(tmp_path, DEVICES, ALPHA, seed=7)
    digits = load_digits()
    all_rows = sorted(
        image.tobytes() + label.tobytes()
        for image, label in zip(digits.images.astype(np.uint8), digits.target.astype(np.int64), strict=True)
    )
    assert len(set(all_rows)) == 1_797  # all differ, so equal multisets mean no leak from test to training
    assert rows(*data.train, data.test) == all_rows
    assert rows(*data.train) == rows(data.everything)
    assert len(arrays(data.test)[1]) == 360


def test_report_matches_the_files(tmp_path: Path) -> None:
    data = make_digits(tmp_path, 4, 0.5, seed=8)
    labels = [arrays(path)[1] for path in data.train]
    assert data.samples == [len(y) for y in labels]
    assert data.label_counts == [[int((y == label).sum()) for label in range(10)] for y in labels]
    assert sum(data.samples) == 1_437
    x, y = arrays(data.test)
    assert data.test_digest == hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()


def test_files_hold_images_as_bytes_and_whole_labels(tmp_path: Path) -> None:
    data = make_digits(tmp_path, 2, 1.0, seed=9)
    for path in [*data.train, data.test, data.everything]:
        x, y = arrays(path)
        assert (str(x.dtype), x.shape[1:], str(y.dtype)) == ("uint8", (8, 8), "int64")
        assert x.max() == 16


def test_the_same_seed_gives_the_same_split_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        make_digits(tmp_path / name, DEVICES, ALPHA, seed) for name, seed in [("a", 7), ("b", 7), ("c", 8)]
    )
    for one, two in zip([*first.train, first.everything], [*again.train, again.everything], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(arrays(one), arrays(two), strict=True))
    assert first.test_digest == again.test_digest
    assert first.test_digest != other.test_digest
    assert first.label_counts != other.label_counts


def test_the_test_part_has_every_class_in_its_share(tmp_path: Path) -> None:
    data = make_digits(tmp_path, DEVICES, ALPHA, seed=7)
    share = np.bincount(load_digits().target) * 360 / 1_797
    assert np.abs(np.bincount(arrays(data.test)[1], minlength=10) - share).max() < 1


def test_every_device_gets_the_minimum_even_when_the_split_is_very_uneven(tmp_path: Path) -> None:
    for seed in range(20, 25):
        assert min(make_digits(tmp_path, 10, 0.1, seed).samples) >= DEVICE_SAMPLES_MIN


def test_a_smaller_alpha_is_more_uneven(tmp_path: Path) -> None:
    def largest_share(alpha: float) -> float:
        counts = np.array(make_digits(tmp_path, DEVICES, alpha, seed=7).label_counts)
        return float((counts.max(axis=0) / counts.sum(axis=0)).mean())

    assert largest_share(0.1) > largest_share(1.0) > largest_share(100.0)


@pytest.mark.parametrize(
    ("devices", "alpha", "text"),
    [
        (0, 0.3, "devices = 0: the digits are enough for 1 to 71 devices"),
        (72, 0.3, "devices = 72"),
        (5, 0.0, "alpha = 0.0: give a number above 0"),
        (5, float("nan"), "alpha = nan"),
        (70, 0.01, "take fewer devices or a larger alpha"),
    ],
)
def test_an_impossible_split_is_refused_with_the_remedy(
    tmp_path: Path, devices: int, alpha: float, text: str
) -> None:
    with pytest.raises(DemoDataError, match=text):
        make_digits(tmp_path, devices, alpha, seed=1)


def test_missing_scikit_learn_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DemoDataError, match=r"needs scikit-learn; install fedbus\[demo\]"):
        make_digits(tmp_path, 2, 1.0, seed=1)


def test_importing_it_loads_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, coordinator.demo.data as d; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_the_frozen_settings_are_within_what_the_wire_allows() -> None:
    for rate in (FEDERATED.learning_rate, LOCAL_ONLY_LEARNING_RATE, CENTRALISED_LEARNING_RATE):
        settings = msgspec.structs.replace(FEDERATED, learning_rate=rate)
        assert msgspec.convert(msgspec.to_builtins(settings), LocalPlan) == settings
