"""A journal of many segments is one chain: what is missing, moved or torn before its end is refused."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.journal import Journal, JournalDamaged, Mark
from broker.journal_file import HEADER_BYTES, Header, encode_header, genesis
from broker.journal_prune import Prunable
from tests.sim.journals import FEDERATION, GROUPS, HERE, Groups, found, open_journal, overwrite, raw, write
from tests.sim.machine import SimFiles

SMALL = HEADER_BYTES + 1  # a segment for each frame
BOUNDS = st.sampled_from([SMALL, 200, 400, 1 << 20])
LETTERS = [[b"a", b"b"], [b"c"], [b"d"], [b"e" * 50], [b"f"]]


def names(files: SimFiles) -> list[str]:
    return files.names(HERE)


def snapshot(files: SimFiles) -> dict[str, bytes]:
    return {name: files.read(HERE / name) for name in names(files)}


def written(groups: Groups, segment_bytes: int = SMALL) -> tuple[SimFiles, list[Mark]]:
    files = SimFiles()
    return files, write(files, groups, segment_bytes=segment_bytes)


def refused(files: SimFiles) -> JournalDamaged:
    """The refusal, the same for readers and writers, which changes nothing."""
    before = snapshot(files)
    offsets = []
    for read_only in (True, False):
        with pytest.raises(JournalDamaged, match=f"{HERE}/0.*fbj: damaged at byte") as caught:
            open_journal(files, read_only=read_only)
        offsets.append((caught.value.path, caught.value.offset))
    assert offsets[0] == offsets[1]
    assert snapshot(files) == before
    return caught.value


@given(st.lists(st.tuples(GROUPS, BOUNDS), min_size=1, max_size=3))
def test_what_was_appended_is_read_back_in_order_however_it_is_cut_into_segments(
    lives: list[tuple[Groups, int]],
) -> None:
    files, single = SimFiles(), SimFiles()
    marks: list[Mark] = []
    for groups, segment_bytes in lives:
        marks += write(files, groups, segment_bytes=segment_bytes)
        write(single, groups)
    assert (
        found(files) == found(single) == [data for groups, _ in lives for group in groups for data in group]
    )
    assert [mark.index for mark in marks] == list(range(1, len(marks) + 1))
    journal, whole = open_journal(files), open_journal(single)
    assert (journal.count, journal.head) == (whole.count, whole.head), "the chain does not depend on the cut"
    assert [entry.data for entry in journal.entries(after=2)] == found(files)[2:]
    journal.close()


def test_a_segment_that_exceeds_its_bound_is_followed_by_the_next() -> None:
    files, _ = written(LETTERS, 150)
    assert names(files) == ["00000001.fbj", "00000002.fbj", "00000003.fbj"]
    assert all(len(raw(files, number)) >= 150 for number in (1, 2))
    assert len(raw(files, 3)) > HEADER_BYTES, "a segment is begun for a frame, not for itself"


@given(GROUPS, BOUNDS, st.data())
def test_a_flipped_byte_before_the_last_frame_is_refused_with_file_and_offset(
    groups: Groups, segment_bytes: int, data: st.DataObject
) -> None:
    files, marks = written([*groups, [b"last"]], segment_bytes)
    last = list(open_journal(files, read_only=True).entries())[-1]
    number = data.draw(st.integers(1, len(names(files))))
    bytes_ = bytearray(raw(files, number))
    end = last.offset if number == len(names(files)) else len(bytes_)
    position = data.draw(st.integers(0, end - 1))
    bytes_[position] ^= data.draw(st.integers(1, 255))
    overwrite(files, bytes(bytes_), number)
    damage = refused(files)
    assert damage.path.name == f"{number:08d}.fbj"
    assert damage.offset <= position
    assert len(marks) == last.index


def test_a_missing_segment_is_refused_by_its_name() -> None:
    for number in range(1, len(LETTERS)):
        files, _ = written(LETTERS)
        files.remove(HERE / f"{number:08d}.fbj")
        assert refused(files).path.name == f"{number:08d}.fbj"


def test_swapped_and_doubled_segments_are_refused() -> None:
    for one in range(1, len(LETTERS) + 1):
        for other in range(1, len(LETTERS) + 2):
            if one == other:
                continue
            files, _ = written(LETTERS)
            first, second = raw(files, one), raw(files, other) if other <= len(LETTERS) else b""
            overwrite(files, first, other)
            assert refused(files).path.name == f"{other:08d}.fbj", "doubled"
            if second:
                overwrite(files, second, one)
                assert refused(files).path.name == f"{min(one, other):08d}.fbj", "swapped"


def test_a_segment_before_the_last_that_was_cut_anywhere_is_refused() -> None:
    for length in range(len(raw(written(LETTERS, 150)[0], 1))):
        files, _ = written(LETTERS, 150)
        overwrite(files, raw(files, 1)[:length])
        damage = refused(files)
        assert (damage.path.name, damage.offset <= length) == ("00000001.fbj", True)


def test_zeros_after_a_segment_before_the_last_are_refused() -> None:
    files, _ = written(LETTERS)
    whole = raw(files, 2)
    overwrite(files, whole + bytes(40), 2)
    damage = refused(files)
    assert (damage.path.name, damage.offset) == ("00000002.fbj", len(whole))


def doctored(header: Header) -> Iterator[Header]:
    yield Header(header.number + 1, header.first, header.head)
    yield Header(header.number, header.first + 1, header.head)
    yield Header(header.number, header.first - 1, header.head)
    yield Header(header.number, header.first, bytes(32))


@pytest.mark.parametrize("which", range(4))
def test_a_header_with_another_number_index_or_head_is_refused_though_its_checksum_is_right(
    which: int,
) -> None:
    files, marks = written(LETTERS)
    for number, (first, head) in {
        2: (3, marks[1].head),
        5: (6, marks[4].head),
    }.items():
        before = raw(files, number)
        assert before[:HEADER_BYTES] == encode_header(FEDERATION, Header(number, first, head))
        header = list(doctored(Header(number, first, head)))[which]
        overwrite(files, encode_header(FEDERATION, header) + before[HEADER_BYTES:], number)
        damage = refused(files)
        assert damage.path.name in (f"{number:08d}.fbj", f"{number - 1:08d}.fbj")
        overwrite(files, before, number)


def test_an_empty_last_segment_is_no_damage_and_is_gone_on_with() -> None:
    files, marks = written(LETTERS)
    header = encode_header(FEDERATION, Header(6, 7, marks[-1].head))
    overwrite(files, header, 6)
    journal = open_journal(files)
    assert (journal.count, journal.head, journal.cut_bytes) == (6, marks[-1].head, 0)
    journal.close()
    write(files, [[b"g"]], segment_bytes=SMALL)
    assert found(files)[-2:] == [b"f", b"g"]
    assert len(names(files)) == 6


@given(GROUPS, BOUNDS, st.data())
@settings(max_examples=50)
def test_an_opening_from_a_true_mark_finds_the_same_end_and_checks_from_its_segment(
    groups: Groups, segment_bytes: int, data: st.DataObject
) -> None:
    files, marks = written(groups, segment_bytes)
    mark = data.draw(st.sampled_from(marks))
    false = [
        Mark(marks[-1].index + 1, marks[-1].head),
        Mark(mark.index, bytes(32)),
        *([] if marks[-1].head == mark.head else [Mark(mark.index, marks[-1].head)]),
    ]
    journal = open_journal(files, marks=[*false, mark])
    assert (journal.since, journal.count, journal.head) == (mark, marks[-1].index, marks[-1].head)
    assert [entry.index for entry in journal.entries(mark.index)] == [m.index for m in marks[mark.index :]]
    journal.close()
    journal = open_journal(files, marks=false)
    assert (journal.since, journal.count) == (None, marks[-1].index)
    journal.close()


def test_damage_before_a_marks_segment_is_left_to_the_full_check() -> None:
    files, marks = written(LETTERS)
    damaged = bytearray(raw(files, 1))
    damaged[-1] ^= 1
    overwrite(files, bytes(damaged))
    journal = open_journal(files, marks=[marks[3]])
    assert [entry.data for entry in journal.entries(marks[3].index)] == [b"e" * 50, b"f"]
    with pytest.raises(JournalDamaged, match=r"00000001\.fbj"):
        list(journal.entries())
    journal.close()
    refused(files)
    head = bytearray(raw(files, 1))
    head[20] ^= 1
    overwrite(files, bytes(head))
    with pytest.raises(JournalDamaged, match=r"00000001.fbj.* file header"):
        Journal.open(files, HERE, FEDERATION, marks=[marks[3]])


@pytest.mark.parametrize("index", range(1, 7))
def test_a_journal_that_was_pruned_begins_later_and_goes_on(index: int) -> None:
    files, marks = written(LETTERS)
    prunable = Prunable(files, HERE, FEDERATION)
    assert prunable.begins_later(index) == (index > 2)
    prunable.begin_at(index)
    with_leftovers = open_journal(files)
    with_leftovers.close()
    prunable.remove()
    before = [Mark(0, genesis(FEDERATION)), *marks][index - 1]
    journal = open_journal(files, marks=[before], segment_bytes=SMALL)
    assert journal.since == before, "also when its frame is the last that was removed"
    assert journal.before.index < index
    assert (journal.count, journal.before.index) == (with_leftovers.count, with_leftovers.before.index)
    assert [entry.index for entry in journal.entries(index - 1)] == list(range(index, 7))
    journal.close()
    write(files, [[b"g"]], segment_bytes=SMALL)
    assert found(files)[-2:] == [b"f", b"g"]
    assert open_journal(files, read_only=True).count == 7


def test_a_frame_of_another_history_behind_a_segment_is_refused() -> None:
    files, _ = written(LETTERS)
    other, _ = written([[b"x", b"y"], *LETTERS[1:]])
    overwrite(files, raw(other, 2), 2)
    assert "continue" in refused(files).what
    assert zlib.crc32(raw(files, 2)) != zlib.crc32(raw(other, 3))
