"""Credit: bytes on their way stay bounded, everybody gets some, and none of it is lost."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.transfer import SHARES, Credits
from schemas.limits import GRANT_CHUNKS_MAX, TRANSFERS_MAX

BYTES_MAX = 64_000
DEVICES = [f"d{index}" for index in range(2 * TRANSFERS_MAX)]


class Crediting(RuleBasedStateMachine):
    """Devices offer, send what they were granted, or vanish; the account must always add up."""

    def __init__(self) -> None:
        super().__init__()
        self.credits = Credits(bytes_max=BYTES_MAX, lease_s=60.0)
        self.now_s = 0.0
        self.granted: dict[str, set[int]] = {}

    @rule(
        device=st.sampled_from(DEVICES),
        chunks=st.integers(1, 40),
        size=st.sampled_from([100, 1000, 5000]),
        window=st.sampled_from([1, GRANT_CHUNKS_MAX]),
    )
    def offer(self, device: str, chunks: int, size: int, window: int) -> None:
        self.granted.pop(device, None)
        self.credits.offer(device, b"t", range(chunks), size, self.now_s, window=window)
        self.grant()

    @rule(device=st.sampled_from(DEVICES), missing=st.sets(st.integers(0, 39)))
    def say_what_is_missing(self, device: str, missing: set[int]) -> None:
        self.credits.follow(device, b"t", missing, self.now_s)
        self.granted[device] = self.granted.get(device, set()) & missing
        self.grant()

    @rule(device=st.sampled_from(DEVICES), index=st.integers(0, 39))
    def arrive(self, device: str, index: int) -> None:
        self.credits.arrived(device, b"t", index, self.now_s)
        self.granted.get(device, set()).discard(index)
        self.grant()

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        for device in [line.owner for line in self.credits.expire(self.now_s)]:
            self.granted.pop(device, None)
        self.grant()

    def grant(self) -> None:
        for grant in self.credits.grant(self.now_s):
            already = self.granted.setdefault(grant.owner, set())
            assert grant.chunks
            assert not already & set(grant.chunks), "a chunk was granted twice"
            already |= set(grant.chunks)

    @invariant()
    def the_account_adds_up_and_keeps_its_bounds(self) -> None:
        lines = self.credits.lines.values()
        assert self.credits.granted_bytes == sum(len(line.granted) * line.chunk_bytes for line in lines)
        assert self.credits.granted_bytes <= BYTES_MAX
        assert sum(bool(line.granted) for line in lines) <= TRANSFERS_MAX
        for line in lines:
            assert line.granted <= line.missing
            assert len(line.granted) <= line.window <= GRANT_CHUNKS_MAX
            assert len(line.granted) * line.chunk_bytes <= max(BYTES_MAX // SHARES, line.chunk_bytes)

    @invariant()
    def whoever_waits_waits_for_want_of_credit_only(self) -> None:
        room = BYTES_MAX - self.credits.granted_bytes
        active = sum(bool(line.granted) for line in self.credits.lines.values())
        for line in self.credits.lines.values():
            if not line.granted:
                assert line.chunk_bytes > room or active >= TRANSFERS_MAX


TestCrediting = Crediting.TestCase


def test_a_silent_device_loses_its_credit_and_a_waiting_one_gets_it() -> None:
    account = Credits(bytes_max=1_000, lease_s=60.0)
    account.offer("gone", b"1", [0], 1_000, 0.0)
    assert [grant.owner for grant in account.grant(0.0)] == ["gone"]
    account.offer("here", b"2", [0], 1_000, 1.0)
    assert account.grant(1.0) == []
    assert [(line.owner, line.transfer) for line in account.expire(61.0)] == [("gone", b"1")]
    assert [grant.owner for grant in account.grant(61.0)] == ["here"]


def test_shares_get_smaller_the_more_transfers_there_are() -> None:
    account = Credits(bytes_max=64_000)
    granted: dict[str, int] = {}
    for number in range(32):
        account.offer(f"d{number}", b"t", range(100), 1_000, 0.0)
        granted |= {grant.owner: len(grant.chunks) for grant in account.grant(0.0)}
    assert granted["d0"] == 8
    assert sum(granted.values()) == 64
    for index in range(8):
        account.arrived("d0", b"t", index, 1.0)
    (waiting, *_) = account.grant(1.0)
    assert waiting.owner != "d0", "whoever waits longest comes first"
    assert len(waiting.chunks) <= 2


def test_a_receivers_window_grows_with_what_arrives() -> None:
    account = Credits()
    account.offer("d", b"t", range(100), 1_000, 0.0, window=1)
    sizes, have = [], 0
    for _ in range(6):
        (grant,) = account.grant(0.0)
        sizes.append(len(grant.chunks))
        have += len(grant.chunks)
        account.follow("d", b"t", range(have, 100), 0.0)
    assert sizes == [1, 2, 4, 8, 16, 16]


def test_grants_come_by_half_windows_not_by_single_chunks() -> None:
    account = Credits()
    account.offer("d", b"t", range(100), 1_000, 0.0)
    (first,) = account.grant(0.0)
    assert len(first.chunks) == GRANT_CHUNKS_MAX
    grants = []
    for index in first.chunks:
        account.arrived("d", b"t", index, 1.0)
        grants += account.grant(1.0)
    assert [len(grant.chunks) for grant in grants] == [GRANT_CHUNKS_MAX // 2, GRANT_CHUNKS_MAX // 2]
