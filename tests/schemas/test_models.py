"""Layouts and manifests: the model a device loads is the one that the coordinator signed, for this job."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import pack
from schemas.errors import Forged, KeyRefused, LayoutMismatch, Malformed, WireError
from schemas.keys import Kind, sign_struct
from schemas.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CONTENT_BYTES_MAX, PARAMETERS_MAX
from schemas.models import (
    Layout,
    Manifest,
    Tensor,
    key_commitment,
    model_key,
    open_layout,
    open_manifest,
    sign_layout,
    sign_manifest,
)
from schemas.sealing import aead_open, commitment
from tests.schemas.examples import EPOCH, JOB, JOB_KEY, LAYOUT, MANIFEST, MODEL, cut, model_chunks
from tests.schemas.parties import DEVICE, FEDERATION, ONLINE, OTHER_FEDERATION, secret

Tensors = list[Tensor]


def tensor(name: str, shape: list[int], role: str = "trained", dtype: str = "float32") -> Tensor:
    return msgspec.convert([name, shape, dtype, role], Tensor)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Layouts that hold together."""
    names = draw(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=9, unique=True))
    order = ["trained", "personal", "frozen", "counter"]
    roles = ["trained", *draw(st.lists(st.sampled_from(order), max_size=6))]
    roles.sort(key=order.index)
    shapes = st.lists(st.integers(1, 9), max_size=3)
    tensors = [
        tensor(name, draw(shapes), role, "int64" if role == "counter" else "float32")
        for name, role in zip(names, roles, strict=False)
    ]
    return Layout(job=JOB, tensors=tensors, aliases=dict.fromkeys(names[len(tensors) :], names[0]))


@given(layout=layouts())
def test_a_layout_is_read_as_it_was_signed(layout: Layout) -> None:
    assert open_layout(sign_layout(layout, ONLINE), ONLINE.public, JOB) == layout
    assert layout.model_bytes == sum(tensor.size_bytes for tensor in layout.tensors)
    assert layout.digest() == sha256(pack(layout)).digest()
    assert 4 * layout.trained_count <= layout.model_bytes


def test_a_manifest_is_read_as_it_was_signed_and_its_chunks_give_the_model() -> None:
    blob = sign_manifest(MANIFEST, ONLINE)
    manifest = open_manifest(blob, ONLINE.public, FEDERATION, JOB, LAYOUT)
    assert manifest == MANIFEST
    commitment(JOB_KEY, b"fb1.job-commit", pack([JOB, manifest.epoch]), manifest.key_commitment)
    key = model_key(JOB_KEY, JOB, manifest.epoch, manifest.model, manifest.chunk_bytes)
    parts = [
        aead_open(key, i, len(manifest.chunks), sealed, MANIFEST.transfer())
        for i, sealed in enumerate(model_chunks())
    ]
    assert [len(part) for part in parts] == [manifest.chunk_size(i) for i in range(len(parts))]
    assert sha256(b"".join(parts)).digest() == manifest.model


def opened(**changes: Any) -> Manifest:
    manifest = msgspec.structs.replace(MANIFEST, **changes)
    return open_manifest(sign_manifest(manifest, ONLINE), ONLINE.public, FEDERATION, JOB, LAYOUT)


def test_a_manifest_of_another_job_or_federation_is_refused() -> None:
    with pytest.raises(Forged):
        opened(job="pumps")
    with pytest.raises(Forged):
        opened(federation=OTHER_FEDERATION)


def test_a_manifest_of_another_layout_is_refused() -> None:
    with pytest.raises(LayoutMismatch):
        opened(layout=bytes(32))
    with pytest.raises(LayoutMismatch):
        opened(model_bytes=MANIFEST.model_bytes + 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"chunks": MANIFEST.chunks[:-1]},
        {"chunks": [*MANIFEST.chunks, bytes(32)]},
        {"chunk_bytes": 2 * CHUNK_BYTES_MIN},
    ],
)
def test_a_manifest_whose_chunks_do_not_fit_the_model_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LayoutMismatch):
        opened(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_bytes": 0},
        {"chunk_bytes": CHUNK_BYTES_MIN - 1},
        {"chunk_bytes": CHUNK_BYTES_MAX + 1},
        {"chunks": []},
        {"chunks": [bytes(31)]},
        {"version": -1},
        {"epoch": -1},
        {"epoch": 2**63},
        {"model": bytes(33)},
        {"model_bytes": 2**63},
    ],
)
def test_a_manifest_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        opened(**changes)


def test_a_manifest_that_the_coordinator_did_not_sign_is_refused() -> None:
    """A device holds the job key, but its signature is not the coordinator's."""
    with pytest.raises(Forged):
        open_manifest(sign_manifest(MANIFEST, DEVICE), ONLINE.public, FEDERATION, JOB, LAYOUT)
    other_kind = sign_struct(Kind.CERTIFICATE, ONLINE, MANIFEST)
    with pytest.raises(Forged):
        open_manifest(other_kind, ONLINE.public, FEDERATION, JOB, LAYOUT)


def test_a_layout_is_no_manifest_and_a_manifest_no_layout() -> None:
    with pytest.raises(Malformed):
        open_manifest(sign_layout(LAYOUT, ONLINE), ONLINE.public, FEDERATION, JOB, LAYOUT)
    with pytest.raises(Malformed):
        open_layout(sign_manifest(MANIFEST, ONLINE), ONLINE.public, JOB)


def test_a_job_key_of_another_epoch_or_job_does_not_fit_the_commitment() -> None:
    for key, job, epoch in (
        (secret("K"), JOB, EPOCH),
        (JOB_KEY, JOB, EPOCH - 1),
        (JOB_KEY, "pumps", EPOCH),
    ):
        with pytest.raises(KeyRefused):
            commitment(key, b"fb1.job-commit", pack([job, epoch]), MANIFEST.key_commitment)
    assert key_commitment(JOB_KEY, JOB, EPOCH) == MANIFEST.key_commitment


def test_chunks_of_one_model_open_under_no_other_models_key() -> None:
    sealed, count = model_chunks()[0], len(MANIFEST.chunks)
    for job, epoch, model, chunk_bytes in (
        ("pumps", EPOCH, MANIFEST.model, CHUNK_BYTES_MIN),
        (JOB, EPOCH + 1, MANIFEST.model, CHUNK_BYTES_MIN),
        (JOB, EPOCH, bytes(32), CHUNK_BYTES_MIN),
        (JOB, EPOCH, MANIFEST.model, 2 * CHUNK_BYTES_MIN),
    ):
        key = model_key(JOB_KEY, job, epoch, model, chunk_bytes)
        with pytest.raises(Forged):
            aead_open(key, 0, count, sealed, MANIFEST.transfer())


def test_a_transfer_names_a_model_in_an_epoch() -> None:
    again = msgspec.structs.replace(MANIFEST, version=99, previous=bytes(32))
    assert again.transfer() == MANIFEST.transfer()
    assert msgspec.structs.replace(MANIFEST, epoch=EPOCH + 1).transfer() != MANIFEST.transfer()
    assert msgspec.structs.replace(MANIFEST, model=bytes(32)).transfer() != MANIFEST.transfer()


BAD_LAYOUTS: dict[str, tuple[Tensors, dict[str, str]]] = {
    "roles out of order": ([tensor("a", [1], "frozen"), tensor("b", [1])], {}),
    "a name twice": ([tensor("a", [1]), tensor("a", [2])], {}),
    "an alias named like a tensor": ([tensor("a", [1])], {"a": "a"}),
    "an alias of nothing": ([tensor("a", [1])], {"b": "c"}),
    "an alias of an alias": ([tensor("a", [1])], {"b": "a", "c": "b"}),
    "controls of other tensors": ([tensor("a", [1]), tensor("scaffold/b", [1], "control")], {}),
    "controls of another shape": ([tensor("a", [1]), tensor("scaffold/a", [2], "control")], {}),
    "controls of a part": ([tensor("a", [1]), tensor("b", [1]), tensor("scaffold/a", [1], "control")], {}),
    "a personal integer": ([tensor("a", [1]), tensor("b", [1], "personal", "int64")], {}),
    "a trained integer": ([tensor("a", [1], "trained", "int64")], {}),
    "a frozen integer": ([tensor("a", [1]), tensor("b", [1], "frozen", "int8")], {}),
    "a counter of floats": ([tensor("a", [1]), tensor("b", [1], "counter")], {}),
    "nothing trained": ([tensor("a", [1], "frozen")], {}),
    "an empty trained part": ([tensor("a", [0])], {}),
    "too many parameters": ([tensor("a", [PARAMETERS_MAX + 1])], {}),
    "a product beyond all bounds": ([tensor("a", [2**63] * 16)], {}),
    "too large a frozen part": (
        [tensor("a", [1]), tensor("b", [CONTENT_BYTES_MAX // 4], "frozen")],
        {},
    ),
}


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_a_layout_that_cannot_be_a_models_is_refused(case: str) -> None:
    tensors, aliases = BAD_LAYOUTS[case]
    layout = Layout(job=JOB, tensors=tensors, aliases=aliases)
    with pytest.raises(LayoutMismatch):
        open_layout(sign_layout(layout, ONLINE), ONLINE.public, JOB)


def test_a_layout_of_another_job_or_signer_is_refused() -> None:
    with pytest.raises(Forged):
        open_layout(sign_layout(LAYOUT, ONLINE), ONLINE.public, "pumps")
    with pytest.raises(Forged):
        open_layout(sign_layout(LAYOUT, DEVICE), ONLINE.public, JOB)


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [["a", [-1], "float32", "trained"]],
        [["a", [1] * 17, "float32", "trained"]],
        [["a", [1], "float16", "trained"]],
        [["a", [1], "float32", "fluid"]],
        [["a" * 501, [1], "float32", "trained"]],
    ],
)
def test_a_layout_with_a_tensor_out_of_bounds_is_refused(tensors: list[Any]) -> None:
    packed = pack({"type": "layout", "job": JOB, "tensors": tensors, "aliases": {}})
    with pytest.raises(WireError):
        open_layout(ONLINE.sign(Kind.MANIFEST, packed) + packed, ONLINE.public, JOB)


def test_the_examples_model_has_the_layouts_size() -> None:
    assert len(MODEL) == LAYOUT.model_bytes == 4 * LAYOUT.trained_count + 4 + 8
    assert len(cut(MODEL)) == len(MANIFEST.chunks)
