"""The log in words: who said what to whom, about which job and round, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from broker.bodies import Bodies
from broker.journal import Entry, Journal
from coordinator.entries import Logged, Message, Sent, Turned, decode_entry
from coordinator.facts import Heard, RequestsIssued, UpdateJudged, VersionCommitted
from coordinator.inputs import Cancel, Invite, JoinAsked, Recorded, Release, Revoke, Submit
from coordinator.keystore import Identity
from coordinator.state import State
from coordinator.stored import stored_name
from schemas.codec import unpack
from schemas.envelope import Envelope, Header, open_envelope
from schemas.errors import WireError
from schemas.events import decode_from_coordinator, decode_from_device
from schemas.ids import COORDINATOR, key_id

View = dict[str, Any]
Request = tuple[str, str, int]  # job, device, number

OPERATOR: Final = "operator"
UPDATE: Final = "update"
UNREADABLE: Final = "unreadable message"


@dataclass(slots=True)
class Reader:
    """Reads a log from its beginning, because entries name requests that earlier ones issued; ``base`` is the
    state that the log begins with."""

    identity: Identity
    bodies: Bodies
    base: State = field(default_factory=State)
    rounds: dict[Request, int] = field(default_factory=dict)
    by_key: dict[bytes, Request] = field(default_factory=dict)  # by the id of a request's key

    def __post_init__(self) -> None:
        for job in self.base.jobs.values():
            for (device, number), request in job.requests.items():
                self._issued((job.id, device, number), request.round, request.key)

    def _issued(self, request: Request, round_: int, key: bytes) -> None:
        self.rounds[request] = round_
        self.by_key[key_id(key)] = request

    def lines(self, journal: Journal, after: int = 0) -> Iterator[tuple[Entry, Logged, View]]:
        """Every entry behind ``after``, with one line about it. Raises `broker.journal.JournalDamaged`."""
        for found in journal.entries(after):
            logged = decode_entry(found.data)
            yield found, logged, self._line(found, logged)

    def _line(self, found: Entry, logged: Logged) -> View:
        about = self._sent(logged) if isinstance(logged, Sent) else self._turn(logged)
        job, device, request = about.get("job", ""), about.get("device", ""), about.get("request", 0)
        round_ = about.get("round", 0) or self.rounds.get((job, device, request), 0)
        return {
            "index": found.index,
            "wall_s": logged.at.wall_s,
            "from": about["from"],
            "to": about["to"],
            "what": about["what"],
            "job": job,
            "round": round_,
            "request": request,
            "device": device,
            "bytes": len(found.data) + about.get("body_bytes", 0),
            "content": about.get("content", {}),
        }

    def _sent(self, logged: Sent) -> View:
        event = decode_from_coordinator(logged.inner)
        return {"from": str(COORDINATOR), "to": logged.device, "device": logged.device} | _told(event)

    def _turn(self, logged: Turned) -> View:
        for fact in logged.facts:
            if isinstance(fact, RequestsIssued):
                for issued in fact.requests:
                    self._issued((fact.job, issued.device, issued.number), fact.round, issued.key)
        if isinstance(logged.input, Message):
            device = logged.input.device
            return {"from": device, "to": str(COORDINATOR), "device": device} | self._said(logged.input)
        return _own(logged.input)

    def _said(self, message: Message) -> View:
        header = unpack(message.header, Header)
        if not message.body:
            name = stored_name(header.clear.recipient, header.seal.body)
            job, _, number = self.by_key.get(header.clear.recipient, ("", "", 0))
            size = self.bodies.size(name) if self.bodies.has(name) else 0
            content = {"body": name, "seq": header.order.seq, "incarnation": header.order.incarnation}
            return {"what": UPDATE, "job": job, "request": number, "body_bytes": size, "content": content}
        try:
            envelope = Envelope(header, message.header, message.signature, message.body)
            opened = open_envelope(envelope, self.identity.box, self.identity.federation)
            return _told(decode_from_device(opened.inner))
        except WireError:
            return {"what": UNREADABLE}


def _told(event: msgspec.Struct) -> View:
    """An event that travelled, and what it is about."""
    about = {name: getattr(event, name) for name in ("job", "request", "round") if hasattr(event, name)}
    return about | {"what": str(event.__struct_config__.tag), "content": plain(event)}


def _own(input_: Recorded) -> View:
    """What did not come as a device's message."""
    who = str(COORDINATOR)
    if isinstance(input_, Invite | Revoke | Release | Submit | Cancel):
        who = OPERATOR
    elif isinstance(input_, JoinAsked):
        who = input_.join.device
    names = ("job", "device", "request", "round")
    about = {name: getattr(input_, name) for name in names if hasattr(input_, name)}
    tag = str(input_.__struct_config__.tag)
    content = {} if isinstance(input_, JoinAsked) else plain(input_)
    return about | {"from": who, "to": str(COORDINATOR), "what": tag, "content": content}


def plain(value: msgspec.Struct) -> View:
    """As JSON can hold it: bytes are hex."""
    found: View = _hex(msgspec.to_builtins(value, builtin_types=(bytes,)))
    return found


def _hex(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {_hex(key): _hex(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [_hex(found) for found in value]
    return value


def explain(reader: Reader, journal: Journal, index: int, after: int = 0) -> View | None:
    """Everything about the entry ``index``, with what became of its request later; None if there is none."""
    view: View | None = None
    request: Request | None = None
    for found, logged, line in reader.lines(journal, after):
        if found.index == index:
            view = line | {"file": str(found.path), "offset": found.offset, "head": found.head.hex()}
            view["facts"] = [plain(fact) for fact in logged.facts] if isinstance(logged, Turned) else []
            request = (line["job"], line["device"], line["request"]) if line["request"] else None
            view["verdict"] = None
        if request is not None and view is not None and isinstance(logged, Turned):
            _follow(view, request, logged, found.index)
    return view


def _follow(view: View, request: Request, logged: Turned, index: int) -> None:
    for fact in logged.facts:
        match fact:
            case UpdateJudged() if (fact.job, fact.device, fact.request) == request:
                view["verdict"] = {
                    "folded": fact.folded,
                    "reason": fact.reason,
                    "entry": index,
                    "norm": fact.norm,
                    "samples": fact.samples,
                }
                view.pop("version", None)  # of the round that it was asked in, in an asynchronous job
            case VersionCommitted() if fact.job == view["job"] and _holds(view, fact.round):
                view["version"] = {"version": fact.version, "model": fact.model.hex(), "entry": index}
            case _:
                pass


def _holds(view: View, round_: int) -> bool:
    """Whether the version that this round made holds the update; of what was not folded, ended its round."""
    if view["verdict"] and view["verdict"]["folded"]:
        return "version" not in view  # the next one does
    return 0 < round_ == int(view["round"])


def sentences(view: View) -> list[str]:
    """What `explain` found, for a person."""
    about = [f"job {view['job']}"] if view["job"] else []
    about += [f"round {view['round']}"] if view["round"] else []
    about += [f"request {view['request']} to {view['device']}"] if view["request"] else []
    facts = [fact for fact in view["facts"] if fact["fact"] != Heard.__struct_config__.tag]
    lines = [f"{view['from']} → {view['to']}: {view['what']}, {view['bytes']} bytes"]
    lines += [", ".join(about)] if about else []
    lines += [f"said {_fields(view['content'])}"] if view["content"] else []
    lines += [f"decided {fact['fact']}: {_fields(fact)}" for fact in facts]
    return lines + _verdict(view)


def _fields(values: View) -> str:
    hidden = ("fact", "input", "type", "spec", "parameters")
    shown = {name: _short(value) for name, value in values.items() if name not in hidden}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value not in ("", "[]", "{}"))


def _short(value: Any, characters_max: int = 64) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= characters_max else f"{text[: characters_max - 1]}…"


def _verdict(view: View) -> list[str]:
    verdict = view["verdict"]
    if verdict is None:
        return ["verdict: none yet"] if view["what"] == UPDATE and view["request"] else []
    if not verdict["folded"]:
        return [f"verdict: rejected (entry {verdict['entry']}): {verdict['reason']}"]
    version = view.get("version")
    into = (
        f"into version {version['version']} (entry {version['entry']})" if version else "into no version yet"
    )
    return [f"verdict: folded (entry {verdict['entry']}), {into}"]
