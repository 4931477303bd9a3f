"""The coordinator's secrets. They live outside the journal, so that a recording holds none of them, and
destroying a request's key shreds the updates that were sealed to it in every copy of the recording.

``keys/`` in the state directory, mode 0700; files 0600, 32-byte secrets in hex or msgpack maps of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from broker.ports import Entropy, Files, write_atomic
from schemas.codec import pack, unpack
from schemas.errors import KeyRefused
from schemas.ids import FederationId, federation_id, key_id
from schemas.keys import BoxKey, KeySet, Kind, SigningKey, checked_key, open_key_set, sign_struct

FOLDER = "keys"
SECRETS = ("root", "next-root", "online", "box", "enrolment")


class KeysMissing(Exception):
    """A state directory without the keys that it needs. The text names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this coordinator is."""

    root: bytes
    online: SigningKey
    box: BoxKey
    enrolment: BoxKey
    key_set: bytes  # signed by the root

    @property
    def federation(self) -> FederationId:
        return federation_id(self.root)


def make_identity(files: Files, directory: Path, entropy: Entropy) -> Identity:
    """A new federation's keys, written durably. The next root's key is for keeping offline."""
    folder = directory / FOLDER
    files.make_dir(folder)
    seeds = {name: entropy.random_bytes(32) for name in SECRETS}
    for name, seed in seeds.items():
        write_atomic(files, folder / f"{name}.key", seed.hex().encode() + b"\n")
    root = SigningKey.from_seed(seeds["root"])
    keys = KeySet(
        number=1,
        federation=federation_id(root.public),
        previous=b"",
        next_root=key_id(SigningKey.from_seed(seeds["next-root"]).public),
        signing=SigningKey.from_seed(seeds["online"]).public,
        box=BoxKey.from_secret(seeds["box"]).public,
        enrolment=BoxKey.from_secret(seeds["enrolment"]).public,
    )
    write_atomic(files, folder / "root.pub", root.public.hex().encode() + b"\n", mode=0o644)
    # Last: a directory with a key set is a whole one.
    write_atomic(files, folder / "key-set", sign_struct(Kind.KEY_SET, root, keys), mode=0o644)
    return load_identity(files, directory)


def load_identity(files: Files, directory: Path) -> Identity:
    """Raises `KeysMissing`, or `schemas.errors.WireError` if the key set is not the root's."""
    folder = directory / FOLDER
    for name in ("key-set", "root.pub", "online.key", "box.key", "enrolment.key"):
        if not files.exists(folder / name):
            raise KeysMissing(
                f"{directory} is not a coordinator's state directory ({FOLDER}/{name} is missing): "
                f"make one with `fedbus-coordinator init --dir {directory}`, or restore it from a backup"
            )
    root = _key(files, folder / "root.pub")
    blob = files.read(folder / "key-set")
    keys = open_key_set(blob, root, federation_id(root))
    identity = Identity(
        root,
        SigningKey.from_seed(_key(files, folder / "online.key")),
        BoxKey.from_secret(_key(files, folder / "box.key")),
        BoxKey.from_secret(_key(files, folder / "enrolment.key")),
        blob,
    )
    ours = (identity.online.public, identity.box.public, identity.enrolment.public)
    if (keys.signing, keys.box, keys.enrolment) != ours:
        raise KeysMissing(f"{folder}: the key files do not belong to the key set; restore both together")
    return identity


def _key(files: Files, path: Path) -> bytes:
    try:
        return checked_key(bytes.fromhex(files.read(path).decode()), path.name)
    except (ValueError, KeyRefused) as error:
        raise KeysMissing(
            f"{path} holds no key of 32 bytes in hex ({error}): restore it from a backup"
        ) from error


class RequestKeys:
    """The keys that updates were sealed to, one file per round; for reading."""

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self._folder = directory / FOLDER
        self._newest: tuple[Path, dict[str, bytes]] | None = None  # the round that was read last

    def request_key(self, job: str, round_: int, public_key_id: bytes) -> BoxKey | None:
        """The key that an update was sealed to; None once it was destroyed."""
        secret = self._round(self._round_path(job, round_)).get(public_key_id.hex())
        return BoxKey.from_secret(secret) if secret else None

    def _round_path(self, job: str, round_: int) -> Path:
        return self._folder / f"requests/{job}/{round_:06d}.keys"

    def _round(self, path: Path) -> dict[str, bytes]:
        if self._newest is None or self._newest[0] != path:
            if not self._files.exists(path):
                return {}
            self._newest = path, unpack(self._files.read(path), dict[str, bytes])
        return self._newest[1]


class KeyStore(RequestKeys):
    """Secrets made while jobs run: `RequestKeys`, and one file per job and epoch."""

    def __init__(self, files: Files, directory: Path, entropy: Entropy) -> None:
        super().__init__(files, directory)
        self._entropy = entropy

    def make_request_keys(self, job: str, round_: int, devices: tuple[str, ...]) -> list[tuple[str, bytes]]:
        """A fresh X25519 key per device, durable on return: (device, public key) each."""
        keys = [(device, BoxKey.from_secret(self._entropy.random_bytes(32))) for device in devices]
        self.put_request_keys(job, round_, [key for _, key in keys])
        return [(device, key.public) for device, key in keys]

    def put_request_keys(self, job: str, round_: int, keys: Iterable[BoxKey]) -> None:
        """Add request keys to those of a round, durably."""
        path = self._round_path(job, round_)
        self._files.make_dir(path.parent)
        secrets = self._round(path) | {key.id.hex(): key.secret for key in keys}
        write_atomic(self._files, path, pack(secrets))
        self._newest = None

    def job_key(self, job: str, epoch: int) -> bytes:
        """The broadcast key of a job's epoch; made, durably, when asked for first."""
        path = self._folder / f"jobs/{job}/{epoch:06d}.key"
        if not self._files.exists(path):
            self._files.make_dir(path.parent)
            write_atomic(self._files, path, self._entropy.random_bytes(32).hex().encode() + b"\n")
        return _key(self._files, path)
