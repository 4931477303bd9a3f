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
            # An item has at least a byte, a pair two: what claims more would only make us allocate.
            max_array_len=min(MSGPACK_ITEMS_MAX, len(data)),
            max_map_len=min(MSGPACK_ITEMS_MAX, len(data) // 2),
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
        raise Malformed(f"not a {getattr(kind, '__name__', 'known event')}: {error}") from error


def unpack_canonical(data: bytes, kind: type[T], *, bytes_max: int = BODY_BYTES_MAX) -> T:
    """A ``kind`` from ``data``, which must be exactly what `pack` makes of it. Raises `Malformed`.

    For everything that is signed: one value has one encoding, so its digest is the digest of its bytes.
    """
    value = unpack(data, kind, bytes_max=bytes_max)
    if pack(value) != data:
        raise Malformed(f"a {getattr(kind, '__name__', kind)} that is not in its canonical form")
    return value
