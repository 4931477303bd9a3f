"""A model as a safetensors file, the form that ``load_state_dict(load_file(...))`` takes.

Equal models make equal files, byte for byte, at the coordinator and on every device. The library does not:
it writes the metadata in random order; and it needs numpy, which the agent's own commands do without.
The form is ``u64 size of the header (little-endian) ‖ header (JSON) ‖ tensors``.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from schemas.jobs import TaskConfig
from schemas.models import ITEM_BYTES, Layout

ALIGN_BYTES: Final = 8
DTYPES: Final = {
    "float32": "F32",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def metadata(
    federation: bytes, job: str, version: int, model: bytes, task: str, config: TaskConfig
) -> dict[str, str]:
    """What an exported version says of itself. ``model`` is the SHA-256 of its bytes, as in its manifest."""
    return {
        "fedbus.federation": federation.hex(),
        "fedbus.job": job,
        "fedbus.version": str(version),
        "fedbus.model": model.hex(),
        "fedbus.task": task,
        "fedbus.config": json.dumps(config, sort_keys=True),
    }


def to_safetensors(layout: Layout, model: bytes | bytearray, metadata: dict[str, str]) -> bytes:
    """The file's bytes; ``model`` are the flat bytes in the order of ``layout``.

    Shared tensors stand in the file under each of their names.
    """
    found, at = {}, 0
    for tensor in layout.tensors:
        if tensor.role != "control":  # the model that is used has none
            found[tensor.name] = tensor, memoryview(model)[at : at + tensor.size_bytes]
        at += tensor.size_bytes
    found |= {alias: found[name] for alias, name in layout.aliases.items()}
    # Readers map the file: each tensor lies at a multiple of its items' size when the larger ones come first.
    order = sorted(found, key=lambda name: (-ITEM_BYTES[found[name][0].dtype], name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        tensor, data = found[name]
        start, end = end, end + len(data)
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGN_BYTES)
    return b"".join([struct.pack("<Q", len(text)), text, *(found[name][1] for name in order)])
