"""Images and labels in IDX files, the format of MNIST and its family; ``.gz`` is unpacked while reading.

``u16 0 ‖ u8 type ‖ u8 dimensions ‖ u32 size of each dimension ‖ values``, big-endian (MNIST, "file formats").
Only bytes are read here (type 8): three dimensions of images, one of labels.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from edge_agent.tasks import TaskError
from edge_agent.tasks.classification import reading

NAME: Final = re.compile(r"(images|labels).*idx([13])-ubyte")
BYTES_AT_ONCE: Final = 1 << 20
UNSIGNED_BYTE: Final = 8


def is_idx(path: Path) -> bool:
    """Whether ``path`` is to be read as IDX: a folder, or a file that is named like one."""
    return path.is_dir() or NAME.search(path.name) is not None


def read_pair(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Images (N, height, width) and labels (N,), both uint8. Raises `TaskError`.

    ``path`` is the file of images, or a folder that holds it: there the one named ``train-…``, or the
    only one. The labels are the file beside it whose name says so.
    """
    images = _images_in(path) if path.is_dir() else path
    labels = _labels_of(images)
    x, y = _read(images, dimensions=3), _read(labels, dimensions=1)
    if len(x) != len(y):
        raise TaskError(
            f"{images}: holds {len(x)} images, but {labels.name} {len(y)} labels; "
            f"give two files that belong together"
        )
    return x, y


def _images_in(folder: Path) -> Path:
    with reading(folder):
        names = sorted(entry.name for entry in folder.iterdir())
    # An unpacked file is the same as its .gz: one name, the former is preferred.
    found: dict[str, Path] = {}
    for name in names:
        match = NAME.search(name)
        if match is not None and match.groups() == ("images", "3"):
            found.setdefault(name.removesuffix(".gz"), folder / name)
    chosen = [name for name in found if name.startswith("train-")] or list(found)
    if len(chosen) != 1:
        several = f"several files of images ({', '.join(chosen)}); give the path of one"
        none = "no file of images in the IDX format (as train-images-idx3-ubyte.gz); put it there"
        raise TaskError(f"{folder}: holds {several if chosen else none}, or of an npz file")
    return found[chosen[0]]


def _labels_of(images: Path) -> Path:
    if "images" not in images.name:
        raise TaskError(
            f"{images}: holds labels; give the path of the images, the labels are found beside it"
        )
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise TaskError(f"{images}: its labels are not beside it; put {name} or {name}.gz there")


def _read(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """All of a file, checked against its header before and while it is read."""
    with reading(path), path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source = cast("gzip.GzipFile", gzip.GzipFile(fileobj=file) if packed else file)
        try:
            header = source.read(4 + 4 * dimensions)
            expected = struct.pack(">HBB", 0, UNSIGNED_BYTE, dimensions)
            if header[:4] != expected:
                raise TaskError(
                    f"{path}: begins with {header[:4].hex(' ') or 'nothing'}, an IDX file of bytes in "
                    f"{dimensions} dimensions with {expected.hex(' ')}; give it the right file"
                )
            if len(header) < 4 + 4 * dimensions:
                raise TaskError(f"{path}: ends within its header; fetch it again")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            values = bytearray()
            while len(values) <= math.prod(shape) and (piece := source.read(BYTES_AT_ONCE)):
                values += piece
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TaskError(f"{path}: is a damaged gzip file ({error}); fetch it again") from error
    if len(values) != math.prod(shape):
        relation = "more" if len(values) > math.prod(shape) else "fewer"
        raise TaskError(
            f"{path}: holds {relation} than the {math.prod(shape)} bytes that its header announces; "
            f"fetch it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)
