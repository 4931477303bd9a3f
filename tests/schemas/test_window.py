"""The replay window says what a set of all numbers ever seen would say, and `TooOld` below its reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import pack, unpack
from schemas.envelope import Order
from schemas.errors import Replayed, TooOld, WireError
from schemas.limits import INCARNATION_MAX, REPLAY_WINDOW, SEQ_MAX
from schemas.window import Window

# Near each other, a window apart, and at the ends: where mistakes live.
SEQS = st.one_of(
    st.integers(0, 40),
    st.integers(REPLAY_WINDOW - 3, REPLAY_WINDOW + 40),
    st.integers(0, 5 * REPLAY_WINDOW),
    st.integers(SEQ_MAX - 3, SEQ_MAX),
)
ORDERS = st.lists(st.builds(Order, st.sampled_from([0, 0, 0, 1, 2, INCARNATION_MAX]), SEQS), max_size=60)


class Naive:
    """Remembers everything."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.seen: set[int] = set()

    def take(self, order: Order) -> type[WireError] | None:
        if order.incarnation < self.incarnation:
            return Replayed
        if order.incarnation > self.incarnation:
            self.incarnation, self.seen = order.incarnation, set()
        if self.seen and order.seq <= max(self.seen) - REPLAY_WINDOW:
            return TooOld
        if order.seq in self.seen:
            return Replayed
        self.seen.add(order.seq)
        return None


def take(window: Window, order: Order) -> tuple[Window, type[WireError] | None]:
    try:
        window.check(order)
    except WireError as refused:
        return window, type(refused)
    return window.after(order), None


@given(orders=ORDERS)
def test_the_window_decides_like_a_set_of_all_numbers(orders: list[Order]) -> None:
    naive, window = Naive(), Window()
    for order in orders:
        window, refused = take(window, order)
        assert refused is naive.take(order)
    assert len(pack(window)) <= REPLAY_WINDOW // 8 + 40


@given(orders=ORDERS)
def test_a_window_survives_being_stored(orders: list[Order]) -> None:
    window = Window()
    for order in orders:
        window, _ = take(window, order)
        assert unpack(pack(window), Window) == window


def test_each_of_the_last_numbers_is_taken_once_in_any_order() -> None:
    window = Window().after(Order(0, REPLAY_WINDOW))
    for seq in [*range(1, REPLAY_WINDOW, 2), *range(REPLAY_WINDOW - 2, 0, -2)]:
        window, refused = take(window, Order(0, seq))
        assert refused is None
    for seq in range(1, REPLAY_WINDOW + 1):
        assert take(window, Order(0, seq))[1] is Replayed
    assert take(window, Order(0, 0))[1] is TooOld


def test_a_sender_that_fell_below_the_window_is_told_the_newest_number() -> None:
    with pytest.raises(TooOld) as refused:
        Window().after(Order(0, 5_000)).check(Order(0, 5_000 - REPLAY_WINDOW))
    assert refused.value.high_water == 5_000


def test_a_lower_incarnation_is_refused_whatever_its_number() -> None:
    window = Window().after(Order(3, 0))
    for seq in (0, 1, SEQ_MAX):
        with pytest.raises(Replayed, match="old copy"):
            window.check(Order(2, seq))


def test_a_higher_incarnation_starts_anew() -> None:
    window = Window().after(Order(0, SEQ_MAX)).after(Order(1, 0))
    assert window == Window(1, 0, b"\x01")
    with pytest.raises(Replayed):
        window.check(Order(0, SEQ_MAX))


def test_a_message_that_is_taken_late_never_moves_the_window_back() -> None:
    """A long upload is recorded with the number it began with, which may have left the window since."""
    recovered = Window().after(Order(0, 7)).after(Order(1, 3))
    assert recovered.after(Order(0, 8)) == recovered
    far = Window().after(Order(1, 9_000))
    assert far.after(Order(1, 9_000 - REPLAY_WINDOW)) == far.after(Order(1, 0)) == far


def test_checking_a_number_changes_nothing() -> None:
    window = Window()
    window.check(Order(0, 7))
    window.check(Order(0, 7))
    assert window == Window()
