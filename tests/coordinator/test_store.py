"""Model versions: what was put is what is read, and what is offered can be pulled, also after a crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.keystore import Identity, KeyStore, load_identity, make_identity
from coordinator.store import NO_VERSION, Offered, Store
from schemas.envelope import chunk_count
from schemas.errors import Forged, LayoutMismatch, WireError
from schemas.limits import CHUNK_BYTES_DEFAULT, CHUNK_OVERHEAD_BYTES
from schemas.models import Layout, Tensor, key_commitment, model_key, open_layout, open_manifest
from schemas.sealing import aead_open
from tests.sim.disk import SimFiles
from tests.sim.machine import SimEntropy

HERE = Path("/state")
SMALL, LARGE = 10, 600_000  # coordinates: one chunk, and three


class Interrupted(Exception):
    """The process is gone, or the power."""


def layout_of(count: int, job: str = "job") -> Layout:
    return Layout(job=job, tensors=[Tensor("weight", [count], "float32", "trained")])


def model_of(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(4 * count)


def opened(files: SimFiles) -> Store:
    """The store as a new start finds it."""
    identity = load_identity(files, HERE)
    return Store(files, HERE, identity, KeyStore(files, HERE, SimEntropy(2)))


def prepared(count: int = SMALL, *jobs: str) -> tuple[SimFiles, Identity, Store]:
    files = SimFiles()
    files.make_dir(HERE)
    identity = make_identity(files, HERE, SimEntropy(1))
    store = opened(files)
    for job in jobs or ("job",):
        store.put_layout(layout_of(count, job))
    return files, identity, store


def pulled(store: Store, offered: Offered) -> list[bytes]:
    return [store.read_chunk(offered, index) for index in range(len(offered.manifest.chunks))]


def unsealed(store: Store, offered: Offered, job_key: bytes) -> bytes:
    """What a device that holds the job's key makes of the chunks."""
    manifest = offered.manifest
    key = model_key(job_key, manifest.job, manifest.epoch, manifest.model, manifest.chunk_bytes)
    sealed, count = pulled(store, offered), len(manifest.chunks)
    assert [sha256(chunk).digest() for chunk in sealed] == manifest.chunks
    context = manifest.transfer()
    return b"".join(aead_open(key, i, count, chunk, context) for i, chunk in enumerate(sealed))


def test_a_model_is_read_as_it_was_put_by_its_digest() -> None:
    files, _, store = prepared()
    data = model_of(SMALL)
    digest = store.put_model("job", [data[:7], bytearray(data[7:20]), memoryview(data)[20:]])
    assert digest == sha256(data).digest()
    assert store.model("job", digest) == opened(files).model("job", digest) == data
    assert store.put_model("job", [data]) == digest, "putting it again changes nothing"
    assert store.model("job", digest) == data


def test_an_altered_model_file_is_refused_by_name() -> None:
    files, _, store = prepared()
    digest = store.put_model("job", [model_of(SMALL)])
    file = files.open(store.model_path("job", digest))
    file.write_at(5, b"x")
    with pytest.raises(ValueError, match=rf"{digest.hex()}\.model was altered"):
        store.model("job", digest)
    with pytest.raises(ValueError, match="altered"):
        store.offer("job", 0, digest, NO_VERSION, 1)


def test_the_layout_is_signed_and_survives_a_restart() -> None:
    files, identity, store = prepared()
    assert open_layout(store.layout_blob("job"), identity.online.public, "job") == layout_of(SMALL)
    assert opened(files).layout("job") == layout_of(SMALL)


def test_a_layout_that_no_model_can_have_is_refused() -> None:
    _, _, store = prepared()
    with pytest.raises(LayoutMismatch):
        store.put_layout(Layout(job="job", tensors=[Tensor("weight", [2], "float32", "frozen")]))


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_an_offer_is_signed_and_its_chunks_open_to_the_model(count: int) -> None:
    files, identity, store = prepared(count)
    data = model_of(count)
    digest = store.put_model("job", [data])
    offered = store.offer("job", 4, digest, sha256(b"previous").digest(), 2)
    manifest = open_manifest(
        offered.blob, identity.online.public, identity.federation, "job", layout_of(count)
    )
    assert manifest == offered.manifest
    assert (manifest.version, manifest.epoch, manifest.previous) == (4, 2, sha256(b"previous").digest())
    assert len(manifest.chunks) == chunk_count(4 * count, CHUNK_BYTES_DEFAULT)
    job_key = KeyStore(files, HERE, SimEntropy(3)).job_key("job", 2)
    assert manifest.key_commitment == key_commitment(job_key, "job", 2)
    assert unsealed(store, offered, job_key) == data
    assert store.by_transfer == {manifest.transfer(): offered}


def test_a_manifest_that_was_altered_on_disk_is_refused() -> None:
    files, _, store = prepared()
    digest = store.put_model("job", [model_of(SMALL)])
    path = store.offer("job", 0, digest, NO_VERSION, 1).chunks.with_suffix(".manifest")
    file = files.open(path)
    file.write_at(file.size() - 1, b"\x00")
    with pytest.raises(Forged):
        opened(files).offer("job", 0, digest, NO_VERSION, 1)


def test_another_epoch_has_other_chunks_another_commitment_and_another_transfer() -> None:
    files, _, store = prepared()
    digest = store.put_model("job", [model_of(SMALL)])
    one, two = (store.offer("job", 0, digest, NO_VERSION, epoch) for epoch in (1, 2))
    assert one.manifest.model == two.manifest.model
    assert one.manifest.key_commitment != two.manifest.key_commitment
    assert one.manifest.transfer() != two.manifest.transfer()
    assert not set(pulled(store, one)) & set(pulled(store, two))
    with pytest.raises(WireError):
        unsealed(store, two, KeyStore(files, HERE, SimEntropy(3)).job_key("job", 1))


def test_an_offer_is_the_same_again_and_after_a_restart() -> None:
    files, _, store = prepared(LARGE)
    digest = store.put_model("job", [model_of(LARGE)])
    first = store.offer("job", 0, digest, NO_VERSION, 1)
    chunks = pulled(store, first)
    assert store.offer("job", 0, digest, NO_VERSION, 1) is first
    again = opened(files)
    assert again.by_transfer == {}
    assert again.offer("job", 0, digest, NO_VERSION, 1) == first
    assert pulled(again, again.by_transfer[first.manifest.transfer()]) == chunks


def test_the_last_chunk_is_shorter() -> None:
    _, _, store = prepared(LARGE)
    offered = store.offer("job", 0, store.put_model("job", [model_of(LARGE)]), NO_VERSION, 1)
    lengths = [len(chunk) - CHUNK_OVERHEAD_BYTES for chunk in pulled(store, offered)]
    assert lengths == [CHUNK_BYTES_DEFAULT, CHUNK_BYTES_DEFAULT, 4 * LARGE - 2 * CHUNK_BYTES_DEFAULT]


def test_two_jobs_that_begin_with_the_same_model_do_not_share_a_transfer() -> None:
    _, _, store = prepared(SMALL, "one", "two")
    offers = [
        store.offer(job, 0, store.put_model(job, [model_of(SMALL)]), NO_VERSION, 1) for job in ("one", "two")
    ]
    assert [store.by_transfer[offered.manifest.transfer()] for offered in offers] == offers


def test_a_manifest_is_good_for_its_own_job_only() -> None:
    _, identity, store = prepared(SMALL, "one", "two")
    blob = store.offer("one", 0, store.put_model("one", [model_of(SMALL)]), NO_VERSION, 1).blob
    with pytest.raises(Forged, match="of job one, not of two"):
        open_manifest(blob, identity.online.public, identity.federation, "two", layout_of(SMALL, "two"))


# Power cuts and kills.


def interrupted(files: SimFiles, after: int, end: Callable[[], None], act: Callable[[], object]) -> bool:
    """Do ``act`` until ``end`` comes before its change number ``after``; False if it had fewer."""
    changes = 0

    def on_change(what: str, path: Path) -> None:
        nonlocal changes
        changes += 1
        if changes > after:
            end()
            raise Interrupted

    files.on_change = on_change
    try:
        act()
    except Interrupted:
        return True
    finally:
        files.on_change = None
    return False


def power_cut(files: SimFiles, seed: int) -> Callable[[], None]:
    return lambda: files.crash(random.Random(seed))


@settings(max_examples=200)
@given(after=st.integers(0, 14), seed=st.integers(0, 2**16))
def test_after_a_power_cut_no_manifest_is_without_its_chunks(after: int, seed: int) -> None:
    files, identity, store = prepared()
    data = model_of(SMALL)
    digest = store.put_model("job", [data])
    interrupted(files, after, power_cut(files, seed), lambda: store.offer("job", 0, digest, NO_VERSION, 1))
    job_key = KeyStore(files, HERE, SimEntropy(9)).job_key("job", 1)
    again = opened(files)
    offered = again.offer("job", 0, digest, NO_VERSION, 1)
    open_manifest(offered.blob, identity.online.public, identity.federation, "job", layout_of(SMALL))
    assert unsealed(again, offered, job_key) == data


@settings(max_examples=200)
@given(killed=st.integers(0, 8), cut=st.integers(0, 8), seed=st.integers(0, 2**16))
def test_a_model_that_was_put_survives_a_power_cut_whatever_came_before(
    killed: int, cut: int, seed: int
) -> None:
    files, _, store = prepared()
    data = model_of(SMALL)
    interrupted(files, killed, files.restart, lambda: store.put_model("job", [data]))
    again = opened(files)
    if not interrupted(files, cut, power_cut(files, seed), lambda: again.put_model("job", [data])):
        files.crash(random.Random(seed))
        assert opened(files).model("job", sha256(data).digest()) == data
    assert opened(files).put_model("job", [data]) == sha256(data).digest()
    assert opened(files).model("job", sha256(data).digest()) == data
