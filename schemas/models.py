"""The layout of a job's model and the signed manifests of its versions.

Rules for what travels, stated once:

- *trained*: float32 tensors that take part in training, and float32 buffers (BatchNorm's running mean and
  variance): their changes travel up as the vector ``delta`` and are averaged.
- *control*: SCAFFOLD's control variate c, a tensor for each trained one, called like it behind ``scaffold/``:
  it travels down, and the coordinator brings it up to date; a device keeps its own, cᵢ.
- *personal*: float32 tensors that take part in training and stay on the device, which keeps its own of them
  between rounds (FedPer, FedBN): what a device begins with travels down, nothing travels up, and the global
  model's never change.
- *frozen*: float32 parameters with ``requires_grad=False``: they travel down, never up, never change.
- *counter*: integer and boolean buffers (BatchNorm's ``num_batches_tracked``): they travel down, stay as
  they are in the global model, and what a device counts stays on the device.
- *shared* parameters (tied weights) travel once, under the first name; the others are ``aliases``.

Tensors of other floating types are refused: convert the model to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Final, Literal, get_args

import msgspec

from schemas.codec import pack
from schemas.envelope import chunk_count
from schemas.errors import Forged, LayoutMismatch
from schemas.fields import ChunkBytes, Digest, Name, Number, Text
from schemas.ids import TRANSFER_BYTES
from schemas.keys import Kind, SigningKey, open_struct, sign_struct
from schemas.limits import CHUNKS_MAX, CONTENT_BYTES_MAX, LAYOUT_BYTES_MAX, PARAMETERS_MAX, TENSORS_MAX
from schemas.sealing import derive

ITEM_BYTES = {"float32": 4, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
DELTA = "delta"
CONTROL = "scaffold/"
Role = Literal["trained", "control", "personal", "frozen", "counter"]
ORDER: Final[dict[Role, int]] = {role: place for place, role in enumerate(get_args(Role))}


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of the model, as in PyTorch's ``state_dict``."""

    name: Text
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=16)]
    dtype: Literal["float32", "int64", "int32", "int16", "int8", "uint8", "bool"]
    role: Role

    @property
    def items(self) -> int:
        """Number of coordinates; 1 for a scalar."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size_bytes(self) -> int:
        return self.items * ITEM_BYTES[self.dtype]


class Layout(msgspec.Struct, frozen=True, kw_only=True, tag="layout"):
    """Order and form of a job's tensors: trained first, then control, personal, frozen, counters.
    Agreed once per job.

    A model's bytes are its tensors', little-endian, in this order; the first ``4 * trained_count`` of them
    line up with the vector ``delta`` of an update.
    """

    job: Name
    tensors: Annotated[list[Tensor], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    aliases: Annotated[dict[Text, Text], msgspec.Meta(max_length=TENSORS_MAX)] = {}

    @property
    def trained_count(self) -> int:
        """Number of trained coordinates (float32)."""
        return sum(tensor.items for tensor in self.tensors if tensor.role == "trained")

    @property
    def control_count(self) -> int:
        """Number of control coordinates (float32): as many as trained ones, which they follow, or 0."""
        return sum(tensor.items for tensor in self.tensors if tensor.role == "control")

    @property
    def private_count(self) -> int:
        """Number of coordinates (float32) that a device keeps for itself."""
        return self.control_count + self.personal_count

    @property
    def personal_count(self) -> int:
        """Number of personal coordinates (float32); they follow trained and control ones."""
        return sum(tensor.items for tensor in self.tensors if tensor.role == "personal")

    @property
    def model_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def digest(self) -> bytes:
        return sha256(pack(self)).digest()

    def check(self) -> None:
        """Raises `LayoutMismatch` if this cannot be a model's layout."""
        roles = [ORDER[tensor.role] for tensor in self.tensors]
        names = [tensor.name for tensor in self.tensors] + list(self.aliases)
        if len(pack(self)) > LAYOUT_BYTES_MAX:
            raise LayoutMismatch(
                f"the layout takes {len(pack(self))} bytes, of which {LAYOUT_BYTES_MAX} may travel: "
                f"use fewer tensors or shorter names"
            )
        if roles != sorted(roles):
            raise LayoutMismatch(
                "the layout's tensors are not ordered trained, control, personal, frozen, counter"
            )
        controls = [tensor for tensor in self.tensors if tensor.role == "control"]
        if controls and controls != controls_of(self.tensors):
            raise LayoutMismatch("the layout's control tensors are not those of its trained ones")
        if len(set(names)) != len(names):
            raise LayoutMismatch("the layout names a tensor twice")
        if not set(self.aliases.values()) <= {tensor.name for tensor in self.tensors}:
            raise LayoutMismatch("an alias in the layout stands for a tensor that is not there")
        for tensor in self.tensors:
            if (tensor.role == "counter") == (tensor.dtype == "float32"):
                raise LayoutMismatch(f"tensor {tensor.name}: {tensor.dtype} cannot be {tensor.role}")
        if not 0 < self.trained_count <= PARAMETERS_MAX:
            raise LayoutMismatch(
                f"{self.trained_count} trained parameters; 1 to {PARAMETERS_MAX} are allowed"
            )
        if self.model_bytes > CONTENT_BYTES_MAX:
            raise LayoutMismatch(f"a model of {self.model_bytes} bytes; the most is {CONTENT_BYTES_MAX}")


def controls_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The control tensors that a model of these trained tensors has, if it has any."""
    trained = (tensor for tensor in tensors if tensor.role == "trained")
    return [Tensor(CONTROL + tensor.name, tensor.shape, "float32", "control") for tensor in trained]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, tag="manifest"):
    """One version of a job's model. ``model`` is SHA-256 of its bytes; ``chunks`` of the sealed chunks.

    ``previous`` is the version before (32 zero bytes for the first): versions form one chain.
    """

    federation: bytes
    job: Name
    version: Number
    model: Digest
    previous: Digest
    layout: Digest
    model_bytes: Number
    epoch: Number
    key_commitment: Digest
    chunk_bytes: ChunkBytes
    chunks: Annotated[list[Digest], msgspec.Meta(min_length=1, max_length=CHUNKS_MAX)]

    def transfer(self) -> bytes:
        """The name under which its chunks travel, and the associated data that they are sealed with."""
        named = pack([self.job, self.model, self.epoch])
        return sha256(b"fb1.model-transfer" + named).digest()[:TRANSFER_BYTES]

    def chunk_size(self, index: int) -> int:
        """Plain bytes of chunk ``index``."""
        return min(self.chunk_bytes, self.model_bytes - index * self.chunk_bytes)


def key_commitment(job_key: bytes, job: str, epoch: int) -> bytes:
    """Commitment to a job's broadcast key of an epoch."""
    return derive(job_key, b"fb1.job-commit", pack([job, epoch]))


def model_key(job_key: bytes, job: str, epoch: int, model: bytes, chunk_bytes: int) -> bytes:
    """The key of one version's chunks: everybody in the job can open them, nobody else."""
    return derive(job_key, b"fb1.model", pack([job, epoch, model, chunk_bytes]))


def sign_manifest(manifest: Manifest, key: SigningKey) -> bytes:
    """The blob that `open_manifest` reads."""
    return sign_struct(Kind.MANIFEST, key, manifest)


def sign_layout(layout: Layout, key: SigningKey) -> bytes:
    """The blob that `open_layout` reads."""
    return sign_struct(Kind.MANIFEST, key, layout)


def open_layout(blob: bytes, signer: bytes, job: str) -> Layout:
    """The layout in ``blob`` if the coordinator's key ``signer`` signed it for ``job``."""
    layout = open_struct(Kind.MANIFEST, signer, blob, Layout)
    if layout.job != job:
        raise Forged(f"this layout is of job {layout.job}, not of {job}")
    layout.check()
    return layout


def open_manifest(blob: bytes, signer: bytes, federation: bytes, job: str, layout: Layout) -> Manifest:
    """The manifest in ``blob`` if the coordinator signed it for this job and layout.

    Raises `Forged`, `LayoutMismatch`, `Malformed`.
    """
    manifest = open_struct(Kind.MANIFEST, signer, blob, Manifest)
    if manifest.federation != federation or manifest.job != job:
        raise Forged(f"this manifest is of job {manifest.job}, not of {job} in this federation")
    if manifest.layout != layout.digest() or manifest.model_bytes != layout.model_bytes:
        raise LayoutMismatch("the manifest does not fit the job's layout")
    if len(manifest.chunks) != chunk_count(manifest.model_bytes, manifest.chunk_bytes):
        raise LayoutMismatch("the manifest's chunks do not fit the model's size")
    return manifest
