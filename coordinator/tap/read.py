"""What a tap's log says: who sent what to whom and how much; what is in it stays sealed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from broker.journal import Entry, Journal, JournalDamaged
from broker.ports import Files
from coordinator.entries import Message, Turned
from coordinator.recovery import FOLDER
from coordinator.tap.entries import UP, Listening, Passed, Tapped, decode_tapped
from coordinator.tap.place import Known
from coordinator.verify import TORN, Damage
from schemas import chunks, enrolment, envelope
from schemas.codec import unpack
from schemas.envelope import Envelope, Header, chunk_digests
from schemas.errors import Malformed, WireError
from schemas.ids import COORDINATOR, TRANSFER_BYTES, key_id

View = dict[str, Any]

TAP: Final = "tap"
SEALED: Final = "sealed"
UPDATE: Final = "update"
OFFERS_MAX: Final = 1_024  # whose chunks are looked at when they come

HOLDS: Final = "holds"
FAILS: Final = "does not hold"
UNKNOWN: Final = "not checked: its key was not told to this tap"


class Reader:
    """Reads a tap's log; takes the place of `coordinator.explain.Reader`."""

    def __init__(self, known: Known) -> None:
        self._federation = known.id
        self._keys = known.keys()
        self._signers = known.signers()

    def lines(self, journal: Journal, after: int = 0) -> Iterator[tuple[Entry, Tapped, View]]:
        """Every entry behind ``after``, with one line about it. Raises `broker.journal.JournalDamaged`,
        `WireError`."""
        for found in journal.entries(after):
            entry = decode_tapped(found.data)
            yield found, entry, self._line(found.index, entry)

    def explain(self, journal: Journal, index: int) -> View | None:
        """Everything about the entry ``index``; None if there is none."""
        for found, entry, line in self.lines(journal, index - 1):
            place = {"file": str(found.path), "offset": found.offset, "head": found.head.hex()}
            return line | place | {"signature": self.signature(entry)}
        return None

    def _line(self, index: int, entry: Tapped) -> View:
        line: View = {"index": index, "wall_s": entry.at.wall_s, "from": TAP, "to": TAP, "device": ""}
        line |= {"job": "", "round": 0, "request": 0, "bytes": 0}
        match entry:
            case Listening():
                what = "listening" if entry.gap_s is None else "gap"
                return line | {"what": what, "content": {"gap_s": entry.gap_s}}
            case Turned(input=Message() as message):
                told = self._sealed(heard_envelope(message), UP)
                size = len(heard_envelope(message).to_bytes())
                ends = {"from": message.device, "to": str(COORDINATOR), "device": message.device}
                return line | ends | {"bytes": size} | told
            case Passed():
                ends = {"from": entry.device, "to": str(COORDINATOR), "device": entry.device}
                if entry.way != UP:
                    ends = {"from": str(COORDINATOR), "to": entry.device, "device": entry.device}
                return line | ends | {"bytes": entry.size} | self._passed(entry)
        raise Malformed("no tap writes such an entry")

    def _sealed(self, heard: Envelope, way: str) -> View:
        clear, order = heard.clear, heard.order
        content: View = {"seq": order.seq, "incarnation": order.incarnation, "transfer": heard.transfer.hex()}
        if clear.chunks:
            content |= {"content_bytes": clear.content_bytes, "chunks": clear.chunks}
        ours = self._keys is not None and way == UP and clear.recipient != key_id(self._keys.box)
        return {"what": UPDATE if clear.chunks or ours else SEALED, "content": content}

    def _passed(self, entry: Passed) -> View:
        if entry.data.startswith(chunks.MAGIC) and len(entry.data) >= chunks.HEAD.size:
            _, transfer, index = chunks.HEAD.unpack_from(entry.data)
            return {"what": "chunk", "content": {"transfer": transfer.hex(), "chunk": index}}
        for magic, what in ((enrolment.JOIN_MAGIC, "join"), (enrolment.WELCOME_MAGIC, "welcome")):
            if entry.data.startswith(magic):
                return {"what": what, "content": {}}
        try:
            return self._sealed(envelope.parse(entry.data), entry.way)
        except WireError as error:
            return {"what": "unreadable message", "content": {"why": str(error)}}

    def signature(self, entry: Tapped) -> str:
        """Whether the message was signed by whom its topic names; empty if it is of a kind without."""
        match entry:
            case Turned(input=Message() as message):
                return self._signed(heard_envelope(message), UP, message.device)
            case Passed() if entry.data.startswith(envelope.MAGIC):
                try:
                    return self._signed(envelope.parse(entry.data), entry.way, entry.device)
                except WireError:
                    return FAILS
        return ""

    def _signed(self, heard: Envelope, way: str, device: str) -> str:
        if way == UP:
            owner, key = self._signers.get(heard.clear.sender, ("", b""))
        else:
            owner, key = device, self._keys.signing if self._keys else b""
        if not key:
            return UNKNOWN
        try:
            heard.check_signature(key)
        except WireError:
            return FAILS
        return HOLDS if (owner, heard.clear.federation) == (device, self._federation) else FAILS


def heard_envelope(message: Message) -> Envelope:
    """A device's message as it came. Raises `WireError`."""
    header = unpack(message.header, Header)
    return Envelope(header, message.header, message.signature, message.body)


def payload_of(journal: Journal, entry: Tapped) -> bytes:
    """The bytes of the message on the wire (of one that was cut, what there is); none of an entry without."""
    match entry:
        case Turned(input=Message() as message):
            return heard_envelope(message).to_bytes()
        case Passed(same=0):
            return entry.data
        case Passed():
            first = decode_tapped(next(journal.entries(entry.same - 1)).data)
            return entry.data + payload_of(journal, first)[len(entry.data) :]
    return b""


def sentences(view: View) -> list[str]:
    """What `Reader.explain` found, for a person."""
    if view["from"] == TAP:
        gap_s = view["content"]["gap_s"]
        if gap_s is None:
            return ["the tap listens from here on"]
        return [f"the tap listens again: what passed in the {gap_s:.1f} s before may be missing"]
    lines = [f"{view['from']} → {view['to']}: {view['what']}, {view['bytes']} bytes"]
    lines += [f"sealed: only {view['to']} can open it"]
    lines += [f"signature: {view['signature']}"] if view["signature"] else []
    told = ", ".join(f"{name} {value}" for name, value in view["content"].items())
    return lines + ([f"in the clear: {told}"] if told else [])


@dataclass(slots=True)
class Checked:
    """What was read. ``foreign`` are entries whose message did not come from whom its topic names, or that is
    not the chunk that was signed: the recording is true, and what it tells is that such a message passed."""

    entries: int = 0
    segments: int = 0
    head: bytes = b""
    messages: int = 0
    gaps: int = 0
    signed: int = 0
    unchecked: int = 0
    chunks: int = 0
    foreign: list[int] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)


def verify(files: Files, directory: Path, known: Known, live: Callable[[], bool]) -> Checked:
    """Check every byte; and every signature and chunk, as far as its key or its offer is known. While a tap
    is ``live``, the last frame may be in flight. Raises `broker.journal.JournalError`."""
    checked, reader = Checked(), Reader(known)
    offers: dict[tuple[str, bytes], tuple[bytes, ...]] = {}
    try:
        journal = Journal.open(files, directory / FOLDER, known.id, read_only=True)
    except JournalDamaged as error:
        checked.damage.append(Damage(error.path, error.offset, error.what))
        return checked
    try:
        checked.segments, checked.head = len(journal.segments), journal.head
        if journal.cut_bytes and not live():
            checked.damage.append(
                Damage(journal.path, journal.end, TORN.replace("`serve`", "the next `record`"))
            )
        for found in journal.entries():
            checked.entries = found.index
            try:
                _check(checked, reader, found.index, decode_tapped(found.data), offers)
            except WireError as error:
                what = f"entry {found.index} ({error})"
                checked.damage.append(Damage(found.path, found.offset, what))
    finally:
        journal.close()
    return checked


def _check(
    checked: Checked,
    reader: Reader,
    index: int,
    entry: Tapped,
    offers: dict[tuple[str, bytes], tuple[bytes, ...]],
) -> None:
    if isinstance(entry, Listening):
        checked.gaps += entry.gap_s is not None
        return
    checked.messages += 1
    signature = reader.signature(entry)
    checked.signed += signature == HOLDS
    checked.unchecked += signature == UNKNOWN
    wrong = signature == FAILS
    if isinstance(entry, Turned) and isinstance(entry.input, Message):
        heard = heard_envelope(entry.input)
        if heard.clear.chunks and not wrong:
            if len(offers) >= OFFERS_MAX:
                offers.pop(next(iter(offers)))
            offers[entry.input.device, heard.transfer] = chunk_digests(heard)
    elif isinstance(entry, Passed) and entry.way == UP and entry.data.startswith(chunks.MAGIC):
        digests = offers.get((entry.device, entry.data[4 : 4 + TRANSFER_BYTES]), ())
        if digests:
            right = _right(entry.data, digests)
            checked.chunks += right
            wrong = not right
    if wrong:
        checked.foreign.append(index)


def _right(data: bytes, digests: tuple[bytes, ...]) -> bool:
    try:
        chunk = chunks.parse_chunk(data)
    except WireError:
        return False
    return chunk.index < len(digests) and sha256(chunk.sealed).digest() == digests[chunk.index]
