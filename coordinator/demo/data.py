"""The demonstration's data: scikit-learn's handwritten digits, split unevenly over devices.

1,797 images of 8 x 8 pixels, values 0 to 16, ten classes (Alpaydin and Kaynak 1998, UCI). 360 of them
are kept for testing and no device sees them; the others are spread by Dirichlet(alpha) for each class
(Hsu, Qi and Brown 2019, section 3), so that each device knows some digits well and others hardly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.jobs import LocalPlan, TaskConfig

CLASSES: Final = 10
TEST_SAMPLES: Final = 360
DEVICE_SAMPLES_MIN: Final = 20
DRAWS_MAX: Final = 1_000

# How the demonstration trains, chosen on seeds 101 to 112 (of split, first parameters and batches) with
# 5 devices, alpha 0.3, 20 rounds, all devices in each. Federated: the settings with few steps among those
# within half a standard error of the best (2 to 10 epochs, batches of 8 to 32, rates 0.05 to 0.5, with
# and without momentum). Baselines: the best rate of 0.01, 0.02, 0.05, 0.1, 0.2. Test accuracy then:
#   federated    median 0.967, least 0.956; least lead over local only 0.236
#   local only   median 0.667, least 0.602 (mean of the five devices' own models)
#   centralised  median 0.978, least 0.967
# One standard error on 360 images is 0.01; other seeds serve for acceptance.
DEVICES: Final = 5
ALPHA: Final = 0.3
ROUNDS: Final = 20
CONFIG: Final[TaskConfig] = {
    "model": "mlp",  # 64-64-10: 4,810 parameters
    "shape": [8, 8],
    "classes": CLASSES,
    "hidden": 64,
    "scale": 16.0,
    "held_out": 0.1,
}
# `seed` is to be replaced for each device and round; about 4,990 steps in all.
FEDERATED: Final = LocalPlan(epochs=3, batch_size=16, learning_rate=0.1, momentum=0.9)
# Both baselines use the same optimiser, each with its own best learning rate. Local only: each device
# alone for ROUNDS x epochs. Centralised: `everything`, as many steps as all devices took together.
LOCAL_ONLY_LEARNING_RATE: Final = 0.1
CENTRALISED_LEARNING_RATE: Final = 0.1

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class DemoDataError(Exception):
    """The demonstration's data cannot be made. The message names cause and remedy."""


@dataclass(frozen=True, slots=True)
class DemoData:
    """Files made by `make_digits`: npz with ``x`` (N, 8, 8) uint8 and ``y`` (N,) int64."""

    train: list[Path]  # one per device
    test: Path  # no device holds any of it
    everything: Path  # all devices' samples together, for the centralised baseline
    test_digest: str  # SHA-256, hex, of the test images' and labels' bytes
    samples: list[int]  # per device
    label_counts: list[list[int]]  # per device, per class


def make_digits(directory: Path, devices: int, alpha: float, seed: int) -> DemoData:
    """Write the split into ``directory`` (made if missing, files of the same name replaced).

    Equal arguments give equal arrays. Every device holds at least `DEVICE_SAMPLES_MIN` samples. Raises
    `DemoDataError` when the arguments cannot be met or scikit-learn is not installed.
    """
    images, labels = _digits()
    _require_possible(devices, alpha, len(labels))
    rng = np.random.default_rng(seed)
    train, test = _stratified(labels, TEST_SAMPLES, rng)
    parts = _dirichlet(labels, train, devices, alpha, rng)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"device-{number + 1}.npz" for number in range(devices)]
    for path, part in zip(paths, parts, strict=True):
        np.savez(path, x=images[part], y=labels[part])
    everything, test_path = directory / "everything.npz", directory / "test.npz"
    np.savez(everything, x=images[train], y=labels[train])
    np.savez(test_path, x=images[test], y=labels[test])
    return DemoData(
        train=paths,
        test=test_path,
        everything=everything,
        test_digest=hashlib.sha256(images[test].tobytes() + labels[test].tobytes()).hexdigest(),
        samples=[len(part) for part in parts],
        label_counts=[np.bincount(labels[part], minlength=CLASSES).tolist() for part in parts],
    )


def _digits() -> tuple[Images, Labels]:
    try:
        from sklearn.datasets import load_digits  # heavy, and only the demo needs it
    except ImportError as error:
        raise DemoDataError("the demo's data needs scikit-learn; install fedbus[demo]") from error
    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def _require_possible(devices: int, alpha: float, samples: int) -> None:
    devices_max = (samples - TEST_SAMPLES) // DEVICE_SAMPLES_MIN
    if not 1 <= devices <= devices_max:
        raise DemoDataError(f"devices = {devices}: the digits are enough for 1 to {devices_max} devices")
    if not 0 < alpha < float("inf"):
        raise DemoDataError(f"alpha = {alpha}: give a number above 0, such as 0.3 (smaller is more uneven)")


def _stratified(
    labels: Labels, test_samples: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Sorted indices of training and test part; the test part has each class in its share, within one."""
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    # Evenly spaced picks from a sequence sorted by class take each class in proportion.
    picks = (np.arange(test_samples) * len(labels)) // test_samples
    return np.sort(np.delete(by_class, picks)), np.sort(by_class[picks])


def _dirichlet(
    labels: Labels, train: npt.NDArray[np.intp], devices: int, alpha: float, rng: np.random.Generator
) -> list[npt.NDArray[np.intp]]:
    """Sorted indices per device, disjoint, together ``train``; drawn again until all have the minimum."""
    classes = [train[labels[train] == label] for label in range(CLASSES)]
    for _ in range(DRAWS_MAX):
        parts: list[list[npt.NDArray[np.intp]]] = [[] for _ in range(devices)]
        for members in classes:
            shares = rng.dirichlet(np.full(devices, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.intp)
            for part, piece in zip(parts, np.split(rng.permutation(members), cuts), strict=True):
                part.append(piece)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, joined)) >= DEVICE_SAMPLES_MIN:
            return joined
    raise DemoDataError(
        f"devices = {devices}, alpha = {alpha}: in {DRAWS_MAX} draws some device always had fewer than "
        f"{DEVICE_SAMPLES_MIN} samples; take fewer devices or a larger alpha"
    )
