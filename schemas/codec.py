"""Structs ↔ msgpack. Limits are checked first, types second; what comes out is a validated struct.

``msgpack`` reads the bytes, within limits; ``msgspec`` checks the types, and writes. Every struct of the wire
goes through here.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgpack
import msgspec

from schemas.errors import Malformed
from schemas.limits import BODY_BYTES_MAX, MSGPACK_ITEMS_MAX, MSGPACK_STRING_BYTES_MAX

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def pack(value: Any) -> bytes:
    """``value`` (a struct, or plain lists, maps, numbers, text, bytes) as canonical msgpack."""
    return _encoder.encode(value)


def unpack_plain(data: bytes | memoryview, *, bytes_max: int = BODY_BYTES_MAX) -> Any:
    """The plain value in ``data``. Raises `Malformed` before anything large is built."""
    size = len(data)
    if size > bytes_max:
        raise Malformed(f"{size} bytes where at most {bytes_max} are allowed")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=MSGPACK_STRING_BYTES_MAX,
            max_bin_len=bytes_max,
            # An item has at least a byte, a pair two: what claims more would only make us allocate.
            max_array_len=min(MSGPACK_ITEMS_MAX, size),
            max_map_len=min(MSGPACK_ITEMS_MAX, size // 2),
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Malformed(f"not msgpack within the limits: {error}") from error


def unpack(data: bytes | memoryview, kind: type[T], *, bytes_max: int = BODY_BYTES_MAX) -> T:
    """A ``kind`` from ``data``. Raises `Malformed` for wrong bytes, types or values."""
    return typed(unpack_plain(data, bytes_max=bytes_max), kind)


def typed(plain: Any, kind: type[T]) -> T:
    """A ``kind`` from the plain value that `unpack_plain` found. Raises `Malformed`."""
    try:
        return msgspec.convert(plain, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise Malformed(f"not a {getattr(kind, '__name__', 'known event')}: {error}") from error


class OneOf(Generic[T]):
    """A union of structs, for `unpack_one`.

    msgspec remembers what it finds out about a struct's fields, and forgets what it finds out about a bare
    union, which costs ten times as much as a small event: so it is shown a struct that holds one.
    """

    def __init__(self, union: Any) -> None:
        self.union = union
        self.holder = msgspec.defstruct("Holder", [("value", union)], array_like=True)


def unpack_one(data: bytes | memoryview, kinds: OneOf[T], *, bytes_max: int = BODY_BYTES_MAX) -> T:
    """One of ``kinds`` from ``data``. Raises `Malformed` for wrong bytes, types or values."""
    plain = unpack_plain(data, bytes_max=bytes_max)
    try:
        value: T = msgspec.convert([plain], kinds.holder, builtin_types=(bytes,)).value  # type: ignore[attr-defined]  # made at run time
    except (msgspec.ValidationError, RecursionError):
        value = typed(plain, kinds.union)  # says what is wrong, and where
    return value


def unpack_canonical(data: bytes, kind: type[T], *, bytes_max: int = BODY_BYTES_MAX) -> T:
    """A ``kind`` from ``data``, which must be exactly what `pack` makes of it. Raises `Malformed`.

    For everything that is signed: one value has one encoding, so its digest is the digest of its bytes.
    """
    return canonical(unpack_plain(data, bytes_max=bytes_max), data, kind)


def canonical(plain: Any, data: bytes, kind: type[T]) -> T:
    """`unpack_canonical` of ``data``, in which `unpack_plain` found ``plain``."""
    value = typed(plain, kind)
    if pack(value) != data:
        raise Malformed(f"a {getattr(kind, '__name__', kind)} that is not in its canonical form")
    return value
