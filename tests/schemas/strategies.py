"""Hypothesis strategies made from the structs' own types and bounds: a new event is tested at once."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as mi

T = TypeVar("T")
INT_MIN, INT_MAX = -(2**63), 2**64 - 1  # what msgpack can say
ITEMS_MAX = 5  # enough to see order and repetition


def values(kind: type[T], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[T]:
    """Valid values of a struct; ``given`` replaces the strategies of some fields."""
    info = mi.type_info(kind)
    assert isinstance(info, mi.StructType)
    return _struct(info, **given)


def _struct(info: mi.StructType, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = {field.name: given.get(field.name, _of(field.type)) for field in info.fields}
    return st.builds(info.cls, **fields)


def _of(info: mi.Type) -> st.SearchStrategy[Any]:
    match info:
        case mi.IntType():
            low = INT_MIN if info.ge is None else info.ge
            high = INT_MAX if info.le is None and info.lt is None else info.le
            return st.integers(low, high if high is not None else (info.lt or 0) - 1)
        case mi.FloatType():
            low_f, high_f = info.ge if info.ge is not None else info.gt, info.le or info.lt
            return st.floats(
                low_f,
                high_f,
                allow_nan=False,
                exclude_min=info.gt is not None,
                exclude_max=info.lt is not None,
            )
        case mi.StrType(pattern=str() as pattern):
            return st.from_regex(pattern)
        case mi.StrType():
            return st.text(max_size=min(info.max_length or 20, 20))
        case mi.BytesType():
            low = info.min_length or 0
            return st.binary(min_size=low, max_size=max(low, min(info.max_length or 40, 40)))
        case mi.ListType():
            return st.lists(_of(info.item_type), min_size=info.min_length or 0, max_size=ITEMS_MAX)
        case mi.DictType():
            return st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=ITEMS_MAX)
        case mi.UnionType():
            return st.one_of(*(_of(member) for member in info.types))
        case mi.LiteralType():
            return st.sampled_from(info.values)
        case mi.BoolType():
            return st.booleans()
        case mi.NoneType():
            return st.none()
        case mi.StructType():
            return _struct(info)
    raise TypeError(f"no strategy for {info}: add one")


def plain(value: Any) -> Any:
    """``value`` as maps and lists, to be spoilt."""
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def msgpack_like() -> st.SearchStrategy[Any]:
    """Anything that msgpack can say, nested a little."""
    leaves = st.none() | st.booleans() | st.integers(INT_MIN, INT_MAX) | st.floats() | st.text() | st.binary()
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=9) | st.dictionaries(st.text() | st.binary(), inner, max_size=6)
        ),
        max_leaves=20,
    )
