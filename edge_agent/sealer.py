"""From sealed model chunks to plain bytes, and from a plain delta to a sealed update. Without PyTorch.

Whoever runs this needs public keys and the job's key, no private one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from msgspec.structs import replace

from broker.ports import Files, Ports
from schemas import work
from schemas.envelope import Clear, Sealed, content_key, fitting_chunk_bytes, new_clear, seal
from schemas.errors import Forged
from schemas.events import Update, encode_event
from schemas.limits import CHUNK_OVERHEAD_BYTES, INLINE_BYTES_MAX
from schemas.models import Manifest, model_key
from schemas.sealing import aead_seal, chunk_open_into


def open_model(files: Files, order: work.Train) -> bytearray:
    """The model that an order is about. Raises `Forged`."""
    return open_sealed(files, Path(order.model), order.manifest, order.job_key)


def open_sealed(files: Files, path: Path, manifest: Manifest, job_key: bytes) -> bytearray:
    """The bytes of the model whose sealed chunks are in ``path``, checked chunk by chunk and as a whole
    against the signed manifest. Raises `Forged`."""
    key = model_key(job_key, manifest.job, manifest.epoch, manifest.model, manifest.chunk_bytes)
    model = bytearray(manifest.model_bytes)
    count = len(manifest.chunks)
    try:
        spool = files.open(path)
    except OSError as error:
        raise Forged(f"{path}: can't be read: {error.strerror or error}") from error
    try:
        for index in range(count):
            at, size = index * manifest.chunk_bytes, manifest.chunk_size(index)
            sealed = spool.read_at(at + index * CHUNK_OVERHEAD_BYTES, size + CHUNK_OVERHEAD_BYTES)
            if sha256(sealed).digest() != manifest.chunks[index]:
                raise Forged(f"{path}: chunk {index} is not the one that was signed")
            out = memoryview(model)[at : at + size]
            chunk_open_into(key, index, count, memoryview(sealed), manifest.transfer(), out)
    finally:
        spool.close()
    if sha256(model).digest() != manifest.model:
        raise Forged(f"version {manifest.version} of job {manifest.job} is not the model that was signed")
    return model


def seal_update(ports: Ports, order: work.Train, update: Update, content: memoryview) -> Sealed:
    """Seal ``update`` with its content under a fresh key; its files in ``out_dir`` are synced on return.

    Raises OSError when they can't be written.
    """
    try:
        return _seal_update(ports, order, update, content)
    except OSError as error:
        cause = f"the update can't be written: {error.strerror or error}; free space for it"
        raise OSError(error.errno, cause, order.out_dir) from error


def _seal_update(ports: Ports, order: work.Train, update: Update, content: memoryview) -> Sealed:
    directory = Path(order.out_dir)
    key = ports.entropy.random_bytes(32)
    digests: tuple[bytes, ...] = ()
    if len(content) <= min(order.inline_max, INLINE_BYTES_MAX):
        clear = new_clear(order.manifest.federation, order.sender, order.update_key)
        update = replace(update, inline=bytes(content))
    else:
        size = fitting_chunk_bytes(len(content), order.chunk_bytes)
        clear = new_clear(order.manifest.federation, order.sender, order.update_key, len(content), size)
        digests = _seal_chunks(ports.files, directory / work.CHUNKS_FILE, clear, key, content)
    sealed = seal(clear, key, order.update_key, encode_event(update), digests)
    _write(ports.files, directory / work.BODY_FILE, [sealed.body])
    ports.files.sync_dir(directory)
    return sealed


def _seal_chunks(
    files: Files, path: Path, clear: Clear, key: bytes, content: memoryview
) -> tuple[bytes, ...]:
    encryption, context = content_key(key, clear)
    digests = []

    def sealed_chunks() -> Iterator[bytes]:
        for index in range(clear.chunks):
            at = index * clear.chunk_bytes
            plain = content[at : at + clear.chunk_size(index)]
            sealed = aead_seal(encryption, index, clear.chunks, plain, context)
            digests.append(sha256(sealed).digest())
            yield sealed

    _write(files, path, sealed_chunks())
    return tuple(digests)


def _write(files: Files, path: Path, parts: Iterable[bytes]) -> None:
    files.remove(path)
    file = files.open(path, create=True)
    try:
        for part in parts:
            file.append(part)
        file.sync()
    finally:
        file.close()
