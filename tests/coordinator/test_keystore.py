"""Secrets are where they were put, readable by their owner alone, and say so when they are not."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from broker.ports import write_atomic
from broker.system import system_ports
from coordinator.keystore import (
    FOLDER,
    SECRETS,
    Identity,
    KeysMissing,
    KeyStore,
    load_identity,
    make_identity,
)
from schemas.errors import Forged
from schemas.ids import federation_id, key_id
from schemas.keys import open_key_set
from tests.sim.disk import SimFiles
from tests.sim.machine import SimEntropy

HERE = Path("/state")
KEYS = HERE / FOLDER


@pytest.fixture
def files() -> SimFiles:
    found = SimFiles()
    found.make_dir(HERE)
    return found


def made(files: SimFiles, seed: int = 1, directory: Path = HERE) -> Identity:
    return make_identity(files, directory, SimEntropy(seed))


def key_store(files: SimFiles, seed: int = 2) -> KeyStore:
    return KeyStore(files, HERE, SimEntropy(seed))


def test_an_identity_is_loaded_as_it_was_made(files: SimFiles) -> None:
    identity = made(files)
    assert load_identity(files, HERE) == identity
    assert identity.federation == federation_id(identity.root)


def test_the_key_set_names_the_online_keys_and_is_signed_by_the_root(files: SimFiles) -> None:
    identity = made(files)
    keys = open_key_set(identity.key_set, identity.root, identity.federation)
    ours = (identity.online.public, identity.box.public, identity.enrolment.public)
    assert (keys.signing, keys.box, keys.enrolment) == ours
    assert (keys.number, keys.previous) == (1, b"")


def test_every_secret_is_another(files: SimFiles) -> None:
    made(files)
    assert len({files.read(KEYS / f"{name}.key") for name in SECRETS}) == len(SECRETS)


@pytest.mark.parametrize("name", ["key-set", "root.pub", "online.key", "box.key", "enrolment.key"])
def test_a_missing_file_is_named_with_the_remedy(files: SimFiles, name: str) -> None:
    made(files)
    files.remove(KEYS / name)
    with pytest.raises(KeysMissing, match=f"{FOLDER}/{name} is missing.*init --dir {HERE}.*backup"):
        load_identity(files, HERE)


def test_what_is_kept_offline_is_not_missed(files: SimFiles) -> None:
    identity = made(files)
    files.remove(KEYS / "next-root.key")
    files.remove(KEYS / "root.key")
    assert load_identity(files, HERE) == identity


@pytest.mark.parametrize("name", ["online.key", "box.key", "enrolment.key"])
def test_a_key_of_another_federation_is_refused(files: SimFiles, name: str) -> None:
    made(files)
    made(files, 2, Path("/other"))
    write_atomic(files, KEYS / name, files.read(Path("/other") / FOLDER / name))
    with pytest.raises(KeysMissing, match="do not belong to the key set; restore both together"):
        load_identity(files, HERE)


def test_a_key_set_of_another_federation_is_refused(files: SimFiles) -> None:
    made(files)
    made(files, 2, Path("/other"))
    write_atomic(files, KEYS / "key-set", files.read(Path("/other") / FOLDER / "key-set"))
    with pytest.raises(Forged):
        load_identity(files, HERE)


@pytest.mark.parametrize("content", [b"", b"\n", b"no hex", b"ab" * 31 + b"\n", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["root.pub", "online.key"])
def test_a_damaged_key_file_is_named_with_the_remedy(files: SimFiles, name: str, content: bytes) -> None:
    made(files)
    write_atomic(files, KEYS / name, content)
    with pytest.raises(KeysMissing, match=f"{KEYS / name} holds no key.*backup"):
        load_identity(files, HERE)


def test_on_a_real_disk_only_the_owner_reads_secrets(tmp_path: Path) -> None:
    ports = system_ports()
    make_identity(ports.files, tmp_path, ports.entropy)
    keys = KeyStore(ports.files, tmp_path, ports.entropy)
    keys.make_request_keys("job", 1, ("a", "b"))
    keys.job_key("job", 1)
    modes = {
        path.relative_to(tmp_path / FOLDER).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / FOLDER).rglob("*")
    }
    public = {"key-set": 0o644, "root.pub": 0o644}
    folders = {"requests": 0o700, "requests/job": 0o700, "jobs": 0o700, "jobs/job": 0o700}
    secrets = {f"{name}.key": 0o600 for name in SECRETS}
    assert modes == public | folders | secrets | {
        "requests/job/000001.keys": 0o600,
        "jobs/job/000001.key": 0o600,
    }
    assert stat.S_IMODE((tmp_path / FOLDER).stat().st_mode) == 0o700


def test_a_request_key_is_found_by_its_id_also_after_a_restart(files: SimFiles) -> None:
    ((device, public),) = key_store(files).make_request_keys("job", 3, ("press-07",))
    found = key_store(files, 9).request_key("job", 3, key_id(public))
    assert device == "press-07"
    assert found is not None
    assert found.public == public


def test_keys_for_further_devices_of_a_round_leave_the_first_in_place(files: SimFiles) -> None:
    keys = key_store(files)
    made = keys.make_request_keys("job", 1, ("a", "b")) + keys.make_request_keys("job", 1, ("a", "c"))
    assert len({public for _, public in made}) == 4, "a key answers one request"
    for _, public in made:
        found = keys.request_key("job", 1, key_id(public))
        assert found is not None
        assert found.public == public


def test_a_request_key_is_its_jobs_and_rounds_alone(files: SimFiles) -> None:
    keys = key_store(files)
    ((_, public),) = keys.make_request_keys("job", 1, ("a",))
    assert keys.request_key("job", 2, key_id(public)) is None
    assert keys.request_key("other", 1, key_id(public)) is None
    assert keys.request_key("job", 1, key_id(b"another key")) is None


def test_a_destroyed_key_is_gone(files: SimFiles) -> None:
    keys = key_store(files)
    ((_, public),) = keys.make_request_keys("job", 1, ("a",))
    files.remove(KEYS / "requests" / "job")
    assert keys.request_key("job", 1, key_id(public)) is None


def test_a_jobs_key_stays_within_its_epoch_and_is_another_in_the_next(files: SimFiles) -> None:
    first = key_store(files).job_key("job", 1)
    again = key_store(files, 9)
    assert again.job_key("job", 1) == first
    assert len({first, again.job_key("job", 2), again.job_key("other", 1)}) == 3
