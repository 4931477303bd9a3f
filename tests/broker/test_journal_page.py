"""docs/journal.md says what the code does: its example is what the code writes and reads."""

from __future__ import annotations

import re
from pathlib import Path

from broker.journal_file import (
    FRAME_BYTES_MAX,
    FRAME_ENTRIES_MAX,
    HEADER_BYTES,
    Header,
    encode_frame,
    encode_header,
    genesis,
)
from broker.journal_segments import SEGMENT_BYTES
from tests.sim.journals import FEDERATION, found, open_journal, overwrite, write
from tests.sim.machine import SimFiles

PAGE = (Path(__file__).parents[2] / "docs" / "journal.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+) \| (\d+|n) \| .* \| `([0-9a-f]+)` \|$", re.MULTILINE)


def segments() -> list[bytes]:
    """The two of the example."""
    blocks = re.findall(r"^```\n([0-9a-f\s]+)```$", PAGE, re.MULTILINE)
    return [bytes.fromhex(block) for block in blocks]


def test_the_example_is_what_is_written() -> None:
    first, head = encode_frame(genesis(FEDERATION), [b"first", b"second"])
    second, end = encode_frame(head, [b"third"])
    assert segments() == [
        encode_header(FEDERATION, Header(1, 1, genesis(FEDERATION))) + first,
        encode_header(FEDERATION, Header(2, 3, head)) + second,
    ]
    assert f"The journal's head is now `{end.hex()}`" in PAGE


def test_the_example_is_a_journal_that_is_read_and_gone_on_with() -> None:
    files = SimFiles()
    write(files, [])
    for number, data in enumerate(segments(), 1):
        overwrite(files, data, number)
    assert found(files) == [b"first", b"second", b"third"]
    assert open_journal(files, read_only=True).cut_bytes == 0
    write(files, [[b"fourth"]])
    assert found(files)[-1] == b"fourth"


def test_the_tables_cut_the_example_where_they_say() -> None:
    fields = [(int(at), size, bytes.fromhex(value)) for at, size, value in ROW.findall(PAGE)]
    header, frame = fields[:7], fields[7:]
    for part, data in ((header, segments()[0][:HEADER_BYTES]), (frame, segments()[0][HEADER_BYTES:])):
        end = 0
        for at, size, value in part:
            assert at == end
            assert data[at : at + len(value)] == value
            assert size in (str(len(value)), "n")
            end = at + len(value)
        assert end == len(data)


def test_the_bounds_are_the_codes() -> None:
    assert f"1 to {FRAME_ENTRIES_MAX} entries, {FRAME_BYTES_MAX >> 20} MiB of them" in PAGE
    assert f"has {SEGMENT_BYTES >> 20} MiB gets no further frame" in PAGE
    assert f"A header of {HEADER_BYTES} bytes" in PAGE
