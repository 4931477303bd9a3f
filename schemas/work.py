"""Orders to a worker process and its replies: the protocol between a program and the child that uses PyTorch.

Each is one frame, ``u32 length ‖ msgpack``, on the child's standard input and output. Paths are text. The
side that orders has verified layouts and manifests; the worker holds no private key.
"""

from __future__ import annotations

import struct
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from schemas.codec import OneOf, pack, unpack_one
from schemas.encodings import FLOAT32, Encoding
from schemas.envelope import Clear, Seal
from schemas.events import DECLINE_REASONS
from schemas.fields import Metrics
from schemas.jobs import LocalSettings, Personal, TaskConfig
from schemas.limits import BODY_BYTES_MAX, TEXT_CHARS_MAX
from schemas.models import Layout, Manifest

FRAME: Final = struct.Struct(">I")
FRAME_BYTES_MAX: Final = 2 * BODY_BYTES_MAX  # a layout and a manifest, each of which travels in one body

# Files in the folder that an update is written to.
BODY_FILE: Final = "body"
CHUNKS_FILE: Final = "chunks"
PRIVATE_FILE: Final = "private"  # what stays on the device
RESIDUAL_FILE: Final = "residual"  # of an update that leaves something out: what that is, float32

Processor = Literal["auto", "cpu", "cuda", "mps"]


class Train(msgspec.Struct, frozen=True, kw_only=True, tag="train"):
    """Train on the model in ``model``, a spool of *sealed* chunks, and seal the update into ``out_dir``.

    ``sender`` is the device's Ed25519 public key. Content up to ``inline_max`` bytes travels in the body.
    ``cpu_share`` (above 0, at most 1) is the part of the time that training may compute; ``device`` is
    where it runs ("auto": an accelerator if there is one). ``private`` is the file of what this device keeps
    of the job, if there is one already (`edge_agent.private`); the next one is written into ``out_dir``. So
    it is with ``residual``, of an ``encoding`` that leaves something out: what that is.
    """

    task: str
    config: TaskConfig
    dataset: str
    local: LocalSettings
    layout: Layout
    manifest: Manifest
    job_key: bytes
    model: str
    sender: bytes
    update_key: bytes
    request: int
    chunk_bytes: int
    out_dir: str
    inline_max: int
    cpu_share: float = 1.0
    device: Processor = "auto"
    private: str = ""
    encoding: Encoding = FLOAT32
    residual: str = ""

    def __repr__(self) -> str:
        """Without the job's key."""
        job, version = self.manifest.job, self.manifest.version
        return f"Train(task={self.task!r}, job={job!r}, version={version}, request={self.request})"


class Make(msgspec.Struct, frozen=True, kw_only=True, tag="make"):
    """Write the first model of a job to ``out``, its bytes in layout order.

    Parameters come from the task under ``seed``, or from the safetensors file ``parameters``. ``personal``
    says what of the model stays on the devices; ``controlled``: it has control variates (SCAFFOLD).
    """

    job: str
    task: str
    config: TaskConfig
    seed: int
    out: str
    parameters: str = ""
    personal: Personal | UnsetType = UNSET
    controlled: bool = False


class Fit(msgspec.Struct, frozen=True, kw_only=True, tag="fit"):
    """Train on the plain model in the file ``model`` and write the result to ``out``; nothing is sealed."""

    task: str
    config: TaskConfig
    model: str
    layout: Layout
    dataset: str
    local: LocalSettings
    out: str
    cpu_share: float = 1.0


class Evaluate(msgspec.Struct, frozen=True, kw_only=True, tag="evaluate"):
    """Evaluate the plain model in the file ``model`` on the held-out part of ``dataset``.

    ``whole``: on all of it, by the task's own setting ``held_out = 0``.
    """

    task: str
    config: TaskConfig
    model: str
    layout: Layout
    dataset: str
    whole: bool = False


class Inspect(msgspec.Struct, frozen=True, kw_only=True, tag="inspect"):
    """Import ``task`` and look at ``dataset``: under ``config``, as a training would; without one, as far as
    the task tells without it. With an empty ``dataset``, only import. ``device`` is where it would train: a
    processor that is not there is a problem of the task."""

    task: str
    dataset: str
    config: TaskConfig | None = None
    device: Processor = "auto"


class Trained(msgspec.Struct, frozen=True, kw_only=True, tag="trained"):
    """An update was sealed: ``out_dir`` holds its body and, if there are any, its chunks; both are synced."""

    clear: Clear
    seal: Seal
    samples: int
    steps: int
    train_s: float
    metrics: Metrics
    evaluation: Metrics


class Made(msgspec.Struct, frozen=True, kw_only=True, tag="made"):
    """The first model was written; this is its layout."""

    layout: Layout


class Fitted(msgspec.Struct, frozen=True, kw_only=True, tag="fitted"):
    """The trained model was written; ``train_s`` is the time inside the task's ``train``."""

    samples: int
    steps: int
    train_s: float
    metrics: Metrics


class Evaluated(msgspec.Struct, frozen=True, kw_only=True, tag="evaluated"):
    """Finite numbers that the task names."""

    metrics: Metrics


class Inspected(msgspec.Struct, frozen=True, kw_only=True, tag="inspected"):
    """The task can be used, and what its data set holds, in the task's own words."""

    facts: dict[str, float | str]


class Problem(msgspec.Struct, frozen=True, kw_only=True, tag="problem"):
    """The order could not be carried out. ``code`` is one of `DECLINE_REASONS`; the text is for people.

    ``local``: it may quote the data set, so it is for those only who have that.
    """

    code: str
    text: str
    local: bool = False


AnyOrder = Train | Make | Fit | Evaluate | Inspect
Reply = Trained | Made | Fitted | Evaluated | Inspected | Problem
_ORDER: Final[OneOf[AnyOrder]] = OneOf(AnyOrder)
_REPLY: Final[OneOf[Reply]] = OneOf(Reply)


def problem(code: str, text: str, *, local: bool = False) -> Problem:
    """A problem whose text is short enough to travel. ValueError for a code that nobody knows."""
    if code not in DECLINE_REASONS:
        raise ValueError(f"{code!r} is none of {', '.join(DECLINE_REASONS)}")
    return Problem(code=code, text=text[:TEXT_CHARS_MAX], local=local)


def encode(message: AnyOrder | Reply) -> bytes:
    """One frame. ValueError if it were too long to be read."""
    packed = pack(message)
    if len(packed) > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {len(packed)} bytes; at most {FRAME_BYTES_MAX} are read")
    return FRAME.pack(len(packed)) + packed


def decode_order(packed: bytes) -> AnyOrder:
    """The order in a frame, without its length. Raises `Malformed`."""
    return unpack_one(packed, _ORDER, bytes_max=FRAME_BYTES_MAX)


def decode_reply(packed: bytes) -> Reply:
    """The reply in a frame, without its length. Raises `Malformed`."""
    return unpack_one(packed, _REPLY, bytes_max=FRAME_BYTES_MAX)
