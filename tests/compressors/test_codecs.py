"""Encodings of flat vectors: sizes, bounds of the error, the same bits for every reader, nothing worse than
numbers from any bytes."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compressors import decode, encode, topk
from compressors.draw import Draw
from compressors.eden import LEVELS
from schemas.encodings import EDEN_BLOCK_MIN, ENCODINGS, FLOAT32, Encoding, eden_parts, encoded_bytes
from schemas.errors import Malformed

Floats = NDArray[np.float32]
NAMES = ("float32", *ENCODINGS)
BITS = {"q8": 8, "q4": 4, "eden1": 1, "eden2": 2, "eden3": 3, "eden4": 4, "float16": 16, "bfloat16": 16}
SQUARE_LOST = {"eden1": 0.571, "eden2": 0.1334, "eden3": 0.0359, "eden4": 0.0098}
"""Of normal coordinates: π/2 - 1, and D/(1 - D) with the distortions D of Max 1960, table I."""
COUNTS = st.integers(1, 3_000) | st.sampled_from([8_191, 8_192, 8_193, 65_536, 66_000])
RANDOM123 = (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)
"""Its known answer (``kat_vectors``) for philox4x64-10 with counter 0 and key 0."""
DECODED = {
    "float16": "0faa42fdc4081694",
    "bfloat16": "99a9151b49253746",
    "q8": "2ac31cf4bfef751f",
    "q4": "f8513bd11e4734e7",
    "eden1": "55af40e1a4cf3f65",
    "eden2": "f4413778c4a132f5",
    "eden3": "e77997361cb7a63d",
    "eden4": "a8d27fe42e17af91",
    "topk": "9c803e7570e7e73f",
}


def of(name: str, count: int) -> Encoding:
    return Encoding(name, -(-count // 50) if name == "topk" else 0)  # type: ignore[arg-type]  # of `NAMES`


def vector(count: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(count) * scale).astype("<f4")


def decoded(encoding: Encoding, data: bytes, count: int) -> Floats:
    out = np.full(count, np.nan, np.float32)
    decode(encoding, data, out)
    return out


def there_and_back(encoding: Encoding, values: Floats, seed: int = 1) -> Floats:
    return decoded(encoding, encode(encoding, values, seed), len(values))


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(NAMES), count=COUNTS)
def test_what_is_encoded_has_the_size_that_was_told_beforehand(name: str, count: int) -> None:
    encoding = of(name, count)
    assert len(encode(encoding, vector(count), 1)) == encoded_bytes(encoding, count)


@pytest.mark.parametrize("name", BITS)
@given(count=st.integers(100_000, 100_000_000))
def test_scales_and_padding_cost_less_than_two_percent(name: str, count: int) -> None:
    assert encoded_bytes(of(name, count), count) * 8 < BITS[name] * count * 1.02


@given(count=st.integers(1, 10_000_000))
def test_blocks_of_rotation_cover_the_coordinates_and_less_than_the_smallest_block_more(count: int) -> None:
    parts = eden_parts(count)
    assert 0 <= sum(blocks * size for blocks, size in parts) - count < EDEN_BLOCK_MIN
    assert all(before > after for (_, before), (_, after) in pairwise(parts))


@settings(deadline=None, max_examples=40)
@given(count=COUNTS, seed=st.integers(0, 2**32), power=st.integers(-20, 4))
def test_the_error_of_each_coordinate_is_bounded(count: int, seed: int, power: int) -> None:
    values = vector(count, seed, 10.0**power)
    amount = np.abs(values.astype(np.float64))
    largest = np.maximum.reduceat(amount, np.arange(0, count, 1024)).repeat(1024)[:count]
    bounds = {"float16": amount * 2.0**-11 + 2.0**-25, "bfloat16": amount * 2.0**-8, "float32": 0 * amount}
    bounds |= {"q8": largest / 127 * 1.00001, "q4": largest / 7 * 1.00001}
    for name, bound in bounds.items():
        error = np.abs(there_and_back(of(name, count), values, seed).astype(np.float64) - values)
        assert (error <= bound).all(), name


@pytest.mark.parametrize("name", SQUARE_LOST)
def test_rotated_vectors_lose_the_part_of_their_square_that_theory_says(name: str) -> None:
    for shape in (vector(100_000), vector(100_000) ** 3, np.sin(np.arange(100_000) / 7).astype("<f4")):
        error = there_and_back(of(name, len(shape)), shape) - shape
        assert np.square(error).sum() / np.square(shape).sum() == pytest.approx(SQUARE_LOST[name], rel=0.05)


@pytest.mark.parametrize("name", ["eden1", "eden2", "eden3", "eden4"])
@given(count=st.integers(1, 500), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_along_the_vector_itself_nothing_is_lost(name: str, count: int, seed: int) -> None:
    values = vector(count, seed)
    back = there_and_back(of(name, count), values, seed).astype(np.float64)
    assert (back * values).sum() == pytest.approx(np.square(values.astype(np.float64)).sum(), rel=1e-5)


@pytest.mark.parametrize("bits", LEVELS)
def test_levels_are_the_means_of_what_is_nearest_to_them(bits: int) -> None:
    """As the best quantiser's are (Lloyd 1957), of a normal number: by the trapezoid rule on a fine grid."""
    grid = np.linspace(-12, 12, 2_400_001)
    density = np.exp(-np.square(grid) / 2)
    levels = LEVELS[bits].astype(np.float64)
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, grid)
    means = np.bincount(nearest, density * grid) / np.bincount(nearest, density)
    assert means == pytest.approx(levels, abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 63, 64, 1_025])
def test_zeros_stay_zeros(name: str, count: int) -> None:
    assert not there_and_back(of(name, count), np.zeros(count, np.float32)).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_and_smallest_numbers_make_nothing_infinite(name: str) -> None:
    big = np.float32(3e38) if name in ("bfloat16", "float32", "topk", "q8", "q4") else np.float32(6e4)
    values = np.array([big, -big, 1e-45, -1e-45, 0.0, 1.0] * 20, np.float32)
    assert np.isfinite(there_and_back(of(name, len(values)), values)).all()


def test_what_float16_cannot_hold_becomes_its_largest() -> None:
    assert there_and_back(Encoding("float16"), np.array([1e6, -1e6], np.float32)).tolist() == [
        65_504,
        -65_504,
    ]


@settings(deadline=None, max_examples=100)
@given(name=st.sampled_from(NAMES), count=st.integers(1, 300), draw=st.data())
def test_any_bytes_of_the_right_size_are_numbers_or_malformed(
    name: str, count: int, draw: st.DataObject
) -> None:
    encoding = of(name, count)
    size = encoded_bytes(encoding, count)
    data = draw.draw(st.binary(min_size=size, max_size=size))
    try:
        first = decoded(encoding, data, count)
    except Malformed:
        assert name == "topk"
        return
    assert first.tobytes() == decoded(encoding, data, count).tobytes()


@given(name=st.sampled_from(NAMES), count=st.integers(1, 300), more=st.sampled_from([-1, 1, 64]))
def test_bytes_of_another_size_are_malformed(name: str, count: int, more: int) -> None:
    encoding = of(name, count)
    with pytest.raises(Malformed):
        decoded(encoding, bytes(max(encoded_bytes(encoding, count) + more, 0)), count)


@pytest.mark.parametrize("places", [(3, 2), (2, 2), (2, 10), (2, 2**32 - 1)])
def test_places_of_top_k_that_do_not_rise_or_lie_outside_are_malformed(places: tuple[int, int]) -> None:
    data = np.array(places, "<u4").tobytes() + bytes(8)
    with pytest.raises(Malformed, match="places"):
        decoded(Encoding("topk", 2), data, 10)


@pytest.mark.parametrize(
    "encoding", [Encoding("topk"), Encoding("topk", 11), Encoding("q8", 1), Encoding("float32", 2)]
)
def test_an_encoding_that_so_many_coordinates_cannot_have_is_malformed(encoding: Encoding) -> None:
    with pytest.raises(Malformed, match="keeps"):
        encoded_bytes(encoding, 10)


def test_top_k_keeps_the_largest_exactly() -> None:
    values = np.array([0.5, -3.0, 1.0, 2.0, -0.25], np.float32)
    assert there_and_back(Encoding("topk", 2), values).tolist() == [0.0, -3.0, 0.0, 2.0, 0.0]


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=60), data=st.data())
def test_no_coordinate_that_top_k_leaves_out_is_larger_than_one_that_it_sends(
    values: list[int], data: st.DataObject
) -> None:
    keep, vector_ = data.draw(st.integers(1, len(values))), np.array(values, np.float32)
    encoded = encode(Encoding("topk", keep), vector_, 0)
    places, numbers = topk.parts(encoded, len(values))
    assert len(places) == keep
    assert numbers.tolist() == [values[place] for place in places]
    assert max(map(abs, np.delete(vector_, places)), default=0) <= min(map(abs, numbers))


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    encoding, values = of(name, 2_000), vector(2_000)
    assert encode(encoding, values, 3) == encode(encoding, values, 3)
    random = name.startswith(("q", "eden"))
    assert (encode(encoding, values, 3) != encode(encoding, values, 4)) is random


def test_the_generator_is_philox_with_ten_rounds() -> None:
    """Whose first block has the counter 1: what numpy draws with one below 0 is that of counter 0."""
    words = np.random.Philox(key=0, counter=2**256 - 1).random_raw(8)
    assert tuple(int(word) for word in words[:4]) == RANDOM123
    words = words[4:]
    assert Draw(0).signs(64)[:8].tolist() == [1.0 - 2.0 * (int(words[0]) >> bit & 1) for bit in range(8)]
    assert Draw(0).fractions(3).tolist() == [
        (int(words[0]) & 0xFFFFFFFF) / 2**32,
        (int(words[0]) >> 32) / 2**32,
        (int(words[1]) & 0xFFFFFFFF) / 2**32,
    ]


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_machine_decodes_the_same_bits(name: str) -> None:
    """Of bytes that a fixed rule makes; the digests were made once."""
    count = 20_011
    encoding = of(name, count)
    if name == "topk":
        places = np.arange(encoding.keep, dtype="<u4") * 49
        data = places.tobytes() + by_rule(4 * encoding.keep)
    else:
        data = by_rule(encoded_bytes(encoding, count))
    assert sha256(decoded(encoding, data, count).tobytes()).hexdigest()[:16] == DECODED[name]


def by_rule(size: int) -> bytes:
    """By integers alone; none above 0x3F, so that floats made of them are finite."""
    return bytes((index * index * 31 + index * 7 + 11) % 251 & 0x3F for index in range(size))


def test_float32_is_the_vector_itself() -> None:
    values = vector(10)
    assert encode(FLOAT32, values, 0) == values.tobytes()
