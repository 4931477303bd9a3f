"""Files that are written where a person wants them, on a real disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from broker.ports import write_export
from broker.system import system_ports


def test_an_export_replaces_its_target_and_touches_nothing_else_of_the_folder(tmp_path: Path) -> None:
    files = system_ports().files
    path = tmp_path / "model"
    path.write_bytes(b"old")
    photos = tmp_path / "model.new" / "photos"
    photos.mkdir(parents=True)
    (tmp_path / "model.1.new").mkdir()
    (tmp_path / "model.2.new").write_bytes(b"mine")
    (tmp_path / "model.3.new").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    write_export(files, path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert sorted(tmp_path.iterdir()) == before
    assert (photos.is_dir(), (tmp_path / "model.2.new").read_bytes()) == (True, b"mine")


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "replace"])
def test_an_export_that_fails_leaves_the_old_bytes_and_nothing_of_itself(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    whole = os.pwrite

    def fail(*arguments: object) -> int:
        if call == "pwrite" and (tmp_path / "model.1.new").stat().st_size < 3:
            descriptor, data, offset = arguments
            return whole(descriptor, data[:3], offset)  # type: ignore[arg-type,index]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if call == "replace" else os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_export(system_ports().files, path, b"newer")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_an_export_to_a_folder_fails_and_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model" / "mine").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_export(system_ports().files, tmp_path / "model", b"new")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["model", "mine"]
