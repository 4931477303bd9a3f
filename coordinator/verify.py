"""Read a state directory wholly: every frame, entry, body and snapshot, against what was recorded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from broker.bodies import Bodies
from broker.journal import Entry, Journal, JournalDamaged
from broker.journal_open import begun
from broker.ports import File, Files
from coordinator.agreement import UNKNOWN, Agreement
from coordinator.claims import Claims
from coordinator.entries import Message, Turned, decode_entry
from coordinator.facts import AnyFact, Joined, UpdateJudged
from coordinator.image import Recovered, decode_image, encode_image
from coordinator.keystore import RequestKeys
from coordinator.recovery import FOLDER, follow_entry
from coordinator.snapshots import BASE, Snapshot, Snapshots
from coordinator.state import State
from coordinator.stored import read_envelope, stored_name
from schemas.codec import unpack
from schemas.envelope import Envelope, Header, chunk_digests
from schemas.errors import WireError
from schemas.ids import key_id
from schemas.keys import Kind
from schemas.keys import verify as check
from schemas.limits import CHUNK_OVERHEAD_BYTES

TORN: Final = (
    "frame: the last one is not whole (if a crash tore it, `serve` cuts it off: none of it was told)"
)


@dataclass(frozen=True, slots=True)
class Damage:
    """``what`` was found wrong in ``file`` at the byte ``offset``."""

    file: Path
    offset: int
    what: str
    entry: int = 0  # of the journal, if it is one

    def __str__(self) -> str:
        return f"{self.file}: damaged at byte {self.offset}: wrong {self.what}"


@dataclass(slots=True)
class Verified:
    """What was read. ``strays`` are bodies that no entry names: of a crash before they were recorded."""

    entries: int = 0
    segments: int = 0
    head: bytes = b""
    bodies: int = 0
    strays: int = 0
    snapshots: int = 0
    damage: list[Damage] = field(default_factory=list)


@dataclass(slots=True)
class _Log:
    """What the log says of other files."""

    recovered: Recovered
    base: int = 0  # the entry that the state was known as of, in a pruned journal
    bodies: dict[str, tuple[int, Message]] = field(default_factory=dict)  # by name, the entry that names it
    signers: dict[bytes, bytes] = field(default_factory=dict)  # by id, every key that ever joined
    folded: dict[str, tuple[Entry, UpdateJudged, int]] = field(default_factory=dict)  # by body; its round


def verify(files: Files, directory: Path, federation: bytes, durable: int | None = None) -> Verified:
    """Check everything that can be. A coordinator that serves has said that ``durable`` entries are; without
    one (None), nothing is in flight, and the journal may not end in a torn frame.

    Raises `broker.journal.JournalError` when there is no journal of this federation.
    """
    while True:
        begin = begun(files, directory / FOLDER)
        try:
            found = _verify(files, directory, federation, durable)
        except FileNotFoundError:
            if begun(files, directory / FOLDER) == begin:
                raise
            continue
        if not found.damage or begun(files, directory / FOLDER) == begin:
            return found
        # It was pruned just now, and we looked at what is gone.


def _verify(files: Files, directory: Path, federation: bytes, durable: int | None) -> Verified:
    found, log = Verified(), _Log(Recovered(State()))
    # Before the journal is: of what comes later, it would not know yet.
    snapshots, bodies = Snapshots(files, directory, federation), Bodies(files, directory / "bodies")
    whole, broken = snapshots.look()
    here = bodies.names()
    found.damage += [Damage(path, 0, f"snapshot ({text})") for path, text in broken]
    try:
        _journal(
            Journal.open(files, directory / FOLDER, federation, read_only=True), log, found, whole, durable
        )
    except JournalDamaged as error:
        found.damage.append(Damage(error.path, error.offset, error.what))
        return found  # nothing can be said of what the rest of it names
    claims = Claims(RequestKeys(files, directory), federation)
    _bodies(bodies, directory / "bodies", here, (log, claims), found)
    return found


def _journal(
    journal: Journal, log: _Log, found: Verified, snapshots: list[Snapshot], durable: int | None
) -> None:
    """Every frame and entry, and the snapshots."""
    try:
        found.segments = len(journal.segments)
        if journal.cut_bytes if durable is None else journal.count < durable:
            found.damage.append(Damage(journal.path, journal.end, TORN))
        beginning = _begin(journal, log, snapshots)
        found.damage += beginning
        places = defaultdict[int, list[Snapshot]](list)
        for snapshot in snapshots:
            places[snapshot.mark.index].append(snapshot)
        agreement = Agreement(log.recovered.state, max(log.base, journal.before.index))
        for entry in journal.entries():
            unknown = bool(beginning) or entry.index <= log.base
            found.damage += _entry(log, entry, None if unknown else agreement)
            found.entries, found.head = entry.index, entry.head
            for snapshot in places.pop(entry.index, []):
                found.damage += _snapshot(snapshot, entry, None if beginning else log)
                found.snapshots += 1
    finally:
        journal.close()
    before = places.pop(journal.before.index, []) if journal.before.index else []
    found.snapshots += len(before)
    wrong = [one for one in before if one.mark != journal.before] + [
        one for left in places.values() for one in left
    ]
    found.damage += [Damage(one.path, 0, "index and head: the journal has no such entry") for one in wrong]


def _begin(journal: Journal, log: _Log, snapshots: list[Snapshot]) -> list[Damage]:
    """What a pruned journal follows on."""
    if not journal.before.index:
        return []
    base = next((one for one in snapshots if one.path.name == BASE), None)
    if base is None or base.mark.index < journal.before.index:
        what = f"base: no snapshot holds the state before entry {journal.before.index + 1}"
        return [Damage(journal.segments[0], 0, what)]
    log.recovered, log.base = decode_image(encode_image(base.recovered)), base.mark.index
    log.signers |= {key_id(one.signing): one.signing for one in log.recovered.state.devices.values()}
    return []


def _entry(log: _Log, found: Entry, agreement: Agreement | None) -> list[Damage]:
    """An entry; if its effect is known, or cannot be known (no ``agreement``), its facts are not applied."""
    problems: list[str] = []

    def look(fact: AnyFact, turn: Turned) -> None:
        problems.append(agreement.fact(fact, turn) if agreement else "")
        if isinstance(fact, UpdateJudged) and fact.folded:
            request = log.recovered.state.jobs[fact.job].requests[fact.device, fact.request]
            name = stored_name(key_id(request.key), request.digest)
            log.folded[name] = found, fact, request.round

    try:
        entry = decode_entry(found.data)
        problems.append(_note(log, entry, found.index) if isinstance(entry, Turned) else "")
        if agreement:
            problems.append(agreement.entry(entry, found.index, found.head))
            follow_entry(log.recovered, entry, look)
    except WireError as error:
        problems.append(str(error))
    except LookupError as error:
        problems.append(f"{UNKNOWN}: {error}")
    return [_in_entry(found, one) for one in problems if one][:1]


def _in_entry(entry: Entry, problem: str) -> Damage:
    return Damage(entry.path, entry.offset, f"entry {entry.index} ({problem})", entry.index)


def _note(log: _Log, entry: Turned, index: int) -> str:
    """Keep what an entry says of others and of bodies; what is wrong with its message, if it has one."""
    for fact in entry.facts:
        if isinstance(fact, Joined):
            log.signers[key_id(fact.signing)] = fact.signing
    if not isinstance(entry.input, Message):
        return ""
    message = entry.input
    header = unpack(message.header, Header)
    if not message.body:
        log.bodies[stored_name(header.clear.recipient, header.seal.body)] = index, message
    return _signed(log, message, header)


def _signed(log: _Log, message: Message, header: Header) -> str:
    """What speaks against a message's being its device's own."""
    sender = header.clear.sender
    signer, owner = log.signers.get(sender), log.recovered.state.by_sender.get(sender, message.device)
    if owner != message.device:
        return f"the message of {message.device} was signed by {owner}"
    if signer is None:
        return "" if log.base else "no device of this federation has its sender's key"
    try:
        if message.body:
            Envelope(header, message.header, message.signature, message.body).check_signature(signer)
        else:  # the body itself is looked at where it is kept
            check(Kind.ENVELOPE, signer, message.header, message.signature)
    except WireError as error:
        return str(error)
    return ""


def _snapshot(found: Snapshot, entry: Entry, log: _Log | None) -> list[Damage]:
    if found.mark.head != entry.head:
        return [Damage(found.path, 0, f"head: entry {entry.index} of the journal has another")]
    if log is None or entry.index < log.base:
        return []
    if encode_image(found.recovered) != encode_image(log.recovered):
        return [Damage(found.path, 0, f"state: the facts up to entry {entry.index} give another")]
    return []


def _bodies(
    bodies: Bodies, folder: Path, here: list[str], told: tuple[_Log, Claims], found: Verified
) -> None:
    log, claims = told
    for name in sorted(log.bodies.keys() | set(here)):
        try:
            file = bodies.open(name)
        except FileNotFoundError:
            if name in log.bodies:  # else a prune beside us removed it
                missing = f"body: entry {log.bodies[name][0]} names it, and it is missing"
                found.damage.append(Damage(folder / name, 0, missing))
            continue
        try:
            problem = _body(file, name, log)
            if problem is None and name in log.folded:
                entry, fact, round_ = log.folded[name]
                if false := claims.look(file, fact, round_):
                    later = (at for at, one in enumerate(found.damage) if one.entry > entry.index)
                    found.damage.insert(next(later, len(found.damage)), _in_entry(entry, false))
        finally:
            file.close()
        found.bodies += 1
        found.strays += name not in log.bodies
        if problem is not None:
            found.damage.append(Damage(folder / name, *problem))


def _body(file: File, name: str, log: _Log) -> tuple[int, str] | None:
    """Where and what is wrong with a stored update; None if nothing is."""
    try:
        envelope, at = read_envelope(file)
        if stored_name(envelope.clear.recipient, envelope.digest) != name:
            return 0, "name: the update in it has another"
        signer = log.signers.get(envelope.clear.sender)
        if signer is not None:
            envelope.check_signature(signer)
        elif not log.base:
            return 0, "sender: no device of this federation has this key"
        elif problem := _unlike(envelope, log.bodies.get(name)):
            return 0, problem
    except WireError as error:
        return 0, f"envelope ({error})"
    return _chunks(file, envelope, at)


def _unlike(envelope: Envelope, named: tuple[int, Message] | None) -> str:
    """How a body differs from what its entry says. For when its signature can't be checked: a device that
    joined anew has another key, and the one before was pruned."""
    if sha256(envelope.body).digest() != envelope.digest:
        return "body: it is not the one that was signed"
    if named is None:
        return ""
    index, message = named
    header = unpack(message.header, Header)
    same = (header.clear, header.seal) == (envelope.clear, envelope.header.seal)
    # Both are others when a crash came between body and entry: then it was signed again, as a later message.
    again = header.order != envelope.order, message.signature != envelope.signature
    return f"envelope: entry {index} has another" if not same or len(set(again)) > 1 else ""


def _chunks(file: File, envelope: Envelope, at: int) -> tuple[int, str] | None:
    for index, digest in enumerate(chunk_digests(envelope)):
        sealed_bytes = envelope.clear.chunk_size(index) + CHUNK_OVERHEAD_BYTES
        if sha256(file.read_at(at, sealed_bytes)).digest() != digest:
            return at, f"chunk {index}"
        at += sealed_bytes
    return (at, "end: more follows") if file.size() > at else None
