"""Model versions on disk: content-addressed bytes, signed manifests, sealed chunks for the devices.

``models/<job>/``: ``layout`` (signed), ``<digest>.model`` (flat bytes in the layout's order), and per version
``<version>.moments`` (what the job's server optimiser keeps, if anything: float32, vector after vector);
per version and key epoch ``<version>.<epoch>.manifest`` (signed) and ``.chunks`` (what devices pull).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from msgspec.structs import replace

from broker.ports import Files, write_atomic
from coordinator.keystore import Identity, KeyStore
from coordinator.strategies import Moments, digest_of
from schemas.envelope import chunk_count, fitting_chunk_bytes
from schemas.limits import CHUNK_BYTES_DEFAULT, CHUNK_OVERHEAD_BYTES
from schemas.models import (
    Layout,
    Manifest,
    key_commitment,
    model_key,
    open_layout,
    open_manifest,
    sign_layout,
    sign_manifest,
)
from schemas.sealing import aead_seal

NO_VERSION = bytes(32)


class Altered(ValueError):
    """A file is not what was written there. The text names it and the remedy."""

    def __init__(self, path: Path, what: str = "was altered: its digest is another") -> None:
        super().__init__(f"{path} {what}; restore it from a backup")


@dataclass(frozen=True, slots=True)
class Offered:
    """A version as devices get it."""

    manifest: Manifest
    blob: bytes
    chunks: Path


class Store:
    """All blocking: call through `Offload` for large models."""

    def __init__(self, files: Files, directory: Path, identity: Identity, keys: KeyStore) -> None:
        self._files = files
        self._folder = directory / "models"
        self._identity = identity
        self._keys = keys
        self._layouts: dict[str, Layout] = {}
        self._offered: dict[tuple[str, int, int], Offered] = {}
        self.by_transfer: dict[bytes, Offered] = {}

    def put_layout(self, layout: Layout) -> None:
        """Sign and keep a job's layout, agreed once."""
        layout.check()
        self._files.make_dir(self._folder / layout.job)
        blob = sign_layout(layout, self._identity.online)
        write_atomic(self._files, self._folder / layout.job / "layout", blob, mode=0o644)

    def layout_blob(self, job: str) -> bytes:
        return self._files.read(self._folder / job / "layout")

    def layout(self, job: str) -> Layout:
        """A job's layout, its signature checked."""
        if job not in self._layouts:
            self._layouts[job] = open_layout(self.layout_blob(job), self._identity.online.public, job)
        return self._layouts[job]

    def put_model(self, job: str, parts: Sequence[bytes | bytearray | memoryview]) -> bytes:
        """Write a model's bytes under their SHA-256, which is returned."""
        digest = sha256()
        for part in parts:
            digest.update(part)
        path = self.model_path(job, digest.digest())
        if not self._files.exists(path):
            draft = path.with_name("draft.model")
            self._write(draft, parts)
            self._files.rename(draft, path)
        # Also when it is there: the life that wrote it may have ended before its name was durable.
        self._files.sync_dir(path.parent)
        return digest.digest()

    def model_path(self, job: str, digest: bytes) -> Path:
        return self._folder / job / f"{digest.hex()}.model"

    def model(self, job: str, digest: bytes) -> bytes:
        """A version's bytes. Raises OSError, or `Altered`."""
        data = self._files.read(self.model_path(job, digest))
        if sha256(data).digest() != digest:
            raise Altered(self.model_path(job, digest))
        return data

    def put_moments(self, job: str, version: int, moments: Moments) -> bytes:
        """Write what the server optimiser keeps after a version; returns its `digest`."""
        if len(moments):
            path = self.moments_path(job, version)
            draft = path.with_name("draft.moments")
            self._write(draft, [moments.data.cast("B")])
            self._files.rename(draft, path)
            self._files.sync_dir(path.parent)
        return digest_of(moments)

    def moments_path(self, job: str, version: int) -> Path:
        return self._folder / job / f"{version:06d}.moments"

    def read_moments(self, job: str, version: int, digest: bytes, moments: Moments) -> None:
        """Read what was kept after a version; where that is nothing, ``moments`` stay as they are.

        Raises OSError, or `Altered`.
        """
        if not digest:
            return
        path = self.moments_path(job, version)
        try:
            file = self._files.open(path)
        except FileNotFoundError as error:
            raise Altered(path, "is missing") from error
        try:
            whole = file.read_into(0, moments.data.cast("B")) == moments.nbytes == file.size()
        finally:
            file.close()
        if not whole or digest_of(moments) != digest:
            raise Altered(path)

    def offer(
        self,
        job: str,
        version: int,
        model: bytes,
        previous: bytes,
        epoch: int,
        chunk_bytes: int = CHUNK_BYTES_DEFAULT,
    ) -> Offered:
        """Manifest and sealed chunks of a version under a key epoch; made when asked for first, in chunks of
        ``chunk_bytes``."""
        known = self._offered.get((job, version, epoch))
        if known is None:
            known = self._load(job, version, epoch)
            known = known or self._seal(job, version, model, previous, epoch, chunk_bytes)
            self._offered[job, version, epoch] = known
            self.by_transfer[known.manifest.transfer()] = known
        return known

    def restore(self, job: str, version: int) -> None:
        """After a restart: what was offered of a version, under any epoch, may still be pulled."""
        for name in self._files.names(self._folder / job):
            number, _, rest = name.partition(".")
            epoch, _, kind = rest.partition(".")
            if (
                kind == "manifest"
                and int(number) == version
                and (offered := self._load(job, version, int(epoch)))
            ):
                self._offered[job, version, int(epoch)] = offered
                self.by_transfer[offered.manifest.transfer()] = offered

    def forget(self, job: str, before: int) -> None:
        """Offer versions before ``before`` no more: nobody trains on them."""
        for key in [key for key in list(self._offered) if key[0] == job and key[1] < before]:
            self.by_transfer.pop(self._offered.pop(key).manifest.transfer(), None)

    def _load(self, job: str, version: int, epoch: int) -> Offered | None:
        path = self._folder / job / f"{version:06d}.{epoch:06d}.manifest"
        if not self._files.exists(path) or not self._files.exists(path.with_suffix(".chunks")):
            return None
        blob = self._files.read(path)
        signer, federation = self._identity.online.public, self._identity.federation
        manifest = open_manifest(blob, signer, federation, job, self.layout(job))
        return Offered(manifest, blob, path.with_suffix(".chunks"))

    def _seal(
        self, job: str, version: int, model: bytes, previous: bytes, epoch: int, chunk_bytes: int
    ) -> Offered:
        plain = memoryview(self.model(job, model))
        size = fitting_chunk_bytes(len(plain), chunk_bytes)
        job_key = self._keys.job_key(job, epoch)
        manifest = Manifest(
            federation=self._identity.federation,
            job=job,
            version=version,
            model=model,
            previous=previous,
            layout=self.layout(job).digest(),
            model_bytes=len(plain),
            epoch=epoch,
            key_commitment=key_commitment(job_key, job, epoch),
            chunk_bytes=size,
            chunks=[bytes(32)],
        )
        key = model_key(job_key, job, epoch, model, size)
        context = manifest.transfer()
        count = chunk_count(len(plain), size)
        sealed = [
            aead_seal(key, index, count, plain[index * size : (index + 1) * size], context)
            for index in range(count)
        ]
        manifest = replace(manifest, chunks=[sha256(chunk).digest() for chunk in sealed])
        path = self._folder / job / f"{version:06d}.{epoch:06d}.manifest"
        self._write(path.with_suffix(".chunks"), sealed)
        self._files.sync_dir(path.parent)  # so that no manifest is ever there without its chunks
        blob = sign_manifest(manifest, self._identity.online)
        write_atomic(self._files, path, blob, mode=0o644)
        return Offered(manifest, blob, path.with_suffix(".chunks"))

    def read_chunk(self, offered: Offered, index: int) -> bytes:
        """Sealed chunk ``index`` of an offered version."""
        size = offered.manifest.chunk_bytes + CHUNK_OVERHEAD_BYTES
        file = self._files.open(offered.chunks)
        try:
            return file.read_at(index * size, offered.manifest.chunk_size(index) + CHUNK_OVERHEAD_BYTES)
        finally:
            file.close()

    def _write(self, path: Path, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        self._files.remove(path)
        file = self._files.open(path, create=True)
        try:
            for part in parts:
                file.append(memoryview(part))
            file.sync()
        finally:
            file.close()
