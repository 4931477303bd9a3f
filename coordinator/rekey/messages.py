"""Entries of a log, told again: messages are opened, translated, sealed and signed anew."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.entries import Logged, Message, Sent, Turned
from coordinator.facts import AnyFact, Joined
from coordinator.keystore import Identity
from coordinator.rekey.translate import Translator
from schemas.codec import pack, unpack
from schemas.envelope import Envelope, Header, Sealed, new_clear, open_envelope, seal, sign
from schemas.events import decode_from_coordinator, decode_from_device, encode_event
from schemas.ids import key_id
from schemas.keys import BoxKey, SigningKey


@dataclass(frozen=True, slots=True)
class Life:
    """A membership, with the throw-away keys of its device."""

    joined: Joined
    signing: SigningKey
    box: BoxKey


class Messages:
    """Goes through a log in its order. ``updates``: what the stored ones are now, by recipient and digest."""

    def __init__(self, translator: Translator, source: Identity, ours: Identity) -> None:
        self._to, self._parties = translator, translator.parties
        self._source, self._ours = source, ours
        self.updates: dict[tuple[bytes, bytes], Sealed] = {}
        self.lives: list[Life] = []

    def entry(self, entry: Logged) -> Logged:
        """The same, of us. Raises `schemas.errors.WireError` for what is not a message of the recording."""
        if isinstance(entry, Sent):
            return self._sent(entry)
        came = entry.input
        told = self._message(came) if isinstance(came, Message) else self._to.struct(came)
        facts = [self._fact(fact) for fact in entry.facts]
        return Turned(at=entry.at, behaviour=entry.behaviour, input=told, facts=facts)

    def _fact(self, fact: AnyFact) -> AnyFact:
        told = self._to.struct(fact)
        if isinstance(fact, Joined) and isinstance(told, Joined):
            signing, box = self._parties.signing(key_id(fact.signing)), self._parties.box(key_id(fact.box))
            self.lives.append(Life(told, signing, box))
        return told

    def _message(self, message: Message) -> Message:
        was = unpack(message.header, Header)
        sender = self._parties.signing(was.clear.sender)
        if message.body:
            envelope = Envelope(was, message.header, message.signature, message.body)
            inner = open_envelope(envelope, self._source.box, self._source.federation).inner
            event = encode_event(self._to.struct(decode_from_device(inner)))
            sealed = self._seal(sender, self._ours.box.public, event)
        else:
            sealed = self.updates[was.clear.recipient, was.seal.body]
        told = sign(sealed, sender, was.order)
        return Message(
            device=self._to.names.of("device", message.device),
            header=told.header_bytes,
            signature=told.signature,
            body=told.body,
        )

    def _sent(self, sent: Sent) -> Sent:
        was = unpack(sent.header, Header)
        inner = encode_event(self._to.struct(decode_from_coordinator(sent.inner)))
        # Sealed as it is recorded: without the job's key. The body is in no recording.
        sealed = self._seal(self._ours.online, self._parties.box(was.clear.recipient).public, inner)
        header = pack(Header(sealed.clear, sealed.seal, was.order))
        device = self._to.names.of("device", sent.device)
        return Sent(at=sent.at, device=device, header=header, inner=inner)

    def _seal(self, sender: SigningKey, recipient: bytes, inner: bytes) -> Sealed:
        clear = new_clear(self._ours.federation, sender.public, recipient)
        return seal(clear, self._parties.fresh(), recipient, inner)
