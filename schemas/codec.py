"""Structs ↔ msgpack. Limits are checked first, types second; what comes out is a validated struct.

``msgpack`` moves the bytes, ``msgspec`` checks the types. Every struct of the wire goes through here.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from schemas.errors import Malformed
from schemas.limits import BODY_BYTES_MAX, MSGPACK_ITEMS_MAX, MSGPACK_STRING_BYTES_MAX

T = TypeVar("T")


def pack(value: Any) -> bytes:
    """``value`` (a struct, or plain lists, maps, numbers, text, bytes) as canonical msgpack."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes,))
    packed: bytes = msgpack.packb(plain, use_bin_type=True)
    return packed


def unpack_plain(data: bytes | memoryview, *, bytes_max: int = BODY_BYTES_MAX) -> Any:
    """The plain value in ``data``. Raises `Malformed` before anything large is built."""
    if len(data) > bytes_max:
        raise Malformed(f"{len(data)} bytes where at most {bytes_max} are allowed")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=MSGPACK_STRING_BYTES_MAX,
            max_bin_len=bytes_max,
            max_array_len=MSGPACK_ITEMS_MAX,
            max_map_len=MSGPACK_ITEMS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Malformed(f"not msgpack within the limits: {error}") from error


def unpack(data: bytes | memoryview, kind: type[T], *, bytes_max: int = BODY_BYTES_MAX) -> T:
    """A ``kind`` from ``data``. Raises `Malformed` for wrong bytes, types or values."""
    plain = unpack_plain(data, bytes_max=bytes_max)
    try:
        return msgspec.convert(plain, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise Malformed(f"not a {getattr(kind, '__name__', kind)}: {error}") from error
