"""Facts, inputs and events of a recording in other words and under other keys.

Each of their fields is in one of two tables: `KEPT` has those that tell nothing of anybody, `RULES` what
becomes of the others. One that is in neither is refused, so that nothing new slips through unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from coordinator.inputs import JoinAsked
from coordinator.keystore import Identity
from coordinator.rekey.names import Names, build, code, free, reason
from coordinator.rekey.parties import Parties
from coordinator.state import JobState
from coordinator.store import Store
from schemas.codec import pack
from schemas.ids import key_id, model_request_id
from schemas.jobs import Personal
from schemas.keys import Kind
from schemas.models import open_manifest

S = TypeVar("S", bound=msgspec.Struct)
Request = tuple[str, str, int]
"""Job, device and number of a request, as the recording names them."""


class Translator:
    """Goes through a log in its order: what comes later may name what came before."""

    def __init__(
        self, names: Names, parties: Parties, source: tuple[Identity, Store], ours: tuple[Identity, Store]
    ) -> None:
        self.names = names
        self.parties = parties
        self._source, self._was = source
        self._ours, self._store = ours
        self._tokens: dict[bytes, bytes] = {}  # id → id of its key
        self._joins: dict[bytes, bytes] = {}
        self.updates: dict[Request | bytes, bytes] = {}
        """Digests, by request and by digest; so are the following: what the recording says → what we say."""
        self.heads: dict[bytes, bytes] = {}
        self.layouts: dict[bytes, bytes] = {}
        self.transfers: dict[bytes, bytes] = {}

    def struct(self, value: S) -> S:
        """``value``, field by field. Raises TypeError for a field that neither table has."""
        if isinstance(value, JoinAsked):
            return self._join_asked(value)  # type: ignore[return-value]  # of the same kind
        kind = type(value).__name__
        changed = {}
        for name in value.__struct_fields__:
            rule = RULES.get(f"{kind}.{name}") or RULES.get(name)
            if rule is not None:
                changed[name] = rule(self, getattr(value, name), value)
            elif name not in KEPT:
                raise TypeError(f"no rule for the field {name} of {kind}")
        return replace(value, **changed)

    def structs(self, values: list[S]) -> list[S]:
        """Each of them."""
        return [self.struct(value) for value in values]

    def personal(self, value: Personal) -> Personal:
        """Which layers stay on the devices; their names are the operator's."""
        return replace(value, layers=[self.names.of("layer", name) for name in value.layers])

    def devices(self, names: list[str]) -> list[str]:
        """Each of them."""
        return [self.names.of("device", name) for name in names]

    def job(self, name: str) -> str:
        """The job of this name."""
        told = self.names.of("job", name)
        self.transfers[model_request_id(name)] = model_request_id(told)
        return told

    def token_key(self, public: bytes, token: bytes) -> bytes:
        """The public key of a token, whose id is ``token``."""
        self._tokens[token] = key_id(public)
        return self.signing(public)

    def signing(self, public: bytes) -> bytes:
        """A device's, or a token's, public key."""
        return self.parties.signing(key_id(public)).public

    def box(self, public: bytes) -> bytes:
        """A device's, or a request's, public key."""
        return self.parties.box(key_id(public)).public

    def update(self, digest: bytes, of: Any) -> bytes:
        """The digest of a received update. Facts say whose it is; what a device is told does not."""
        by_request = (of.job, of.device, of.request) if hasattr(of, "device") else digest
        return self.updates[by_request]

    def transfer(self, name: bytes) -> bytes:
        """A transfer's name; any, if it never came to its end."""
        return self.transfers.get(name) or self.parties.value(name)

    def manifest(self, blob: bytes, job: str) -> bytes:
        """The manifest of the same version, signed by us."""
        source = self._source
        was = open_manifest(blob, source.online.public, source.federation, job, self._was.layout(job))
        ours = self._store.offer(
            self.job(job), was.version, was.model, was.previous, was.epoch, was.chunk_bytes
        )
        self.transfers[was.transfer()] = ours.manifest.transfer()
        return ours.blob

    def layout(self, job: str) -> bytes:
        """A job's layout, signed by us."""
        return self._store.layout_blob(self.job(job))

    def join(self, digest: bytes) -> bytes:
        """The digest of a join that was translated before."""
        return self._joins[digest]

    def _join_asked(self, asked: JoinAsked) -> JoinAsked:
        was = asked.join
        join = replace(
            was,
            federation=self._ours.federation,
            root=self._ours.root,
            token=self.parties.value(was.token),
            device=self.names.of("device", was.device),
            signing=self.signing(was.signing),
            box=self.box(was.box),
            nonce=self.parties.value(was.nonce),
        )
        self._joins[was.digest()] = join.digest()
        by_token = self.parties.signing(self._tokens[was.token]).sign(Kind.JOIN_TOKEN, pack(join))
        challenge = self.parties.value(asked.challenge)
        return JoinAsked(join=join, packed=pack(join), by_token=by_token, challenge=challenge)


KEPT: Final = frozenset(
    {"base", "batch_size", "chunk_bytes", "chunks", "compression", "content", "cores", "deadline_run_s"}
    | {"cosine", "counted", "deadline_s", "distance", "encoding", "encodings"}
    | {"epoch", "epochs", "expires_wall_s", "folded", "have", "high", "incarnation", "index", "inline"}
    | {"job_key", "key_set", "learning_rate", "length", "memory_bytes", "min_reports", "model", "moments"}
    | {
        "momentum",
        "norm",
        "number",
        "over_selection",
        "power",
        "quarantine_after",
        "quarantine_rounds",
        "radius",
        "request",
        "round",
        "rounds",
        "samples",
        "samples_max",
    }
    | {"seed", "seq", "state", "steps", "steps_max", "train_s", "until", "update_norm_max", "version"}
    | {"alarm_factor", "alarm_rises", "bound", "by", "every", "kind", "min_delta", "mode", "patience"}
    | {"selection", "source", "stop_on_divergence", "target", "value", "weight_decay"}
)
Rule = Callable[[Translator, Any, Any], Any]
RULES: Final[dict[str, Rule]] = {
    # Who and what.
    "device": lambda to, name, of: to.names.of("device", name),
    "devices": lambda to, names, of: to.devices(names),
    "VersionEvaluated.devices": lambda to, count, of: count,
    "RoundOpened.cohort": lambda to, names, of: to.devices(names),
    "JobSpec.cohort": lambda to, count, of: count,
    "entity": lambda to, name, of: to.names.of("entity", name),
    "job": lambda to, name, of: to.job(name),
    "JobSpec.name": lambda to, name, of: to.job(name),
    "Vector.name": lambda to, name, of: to.names.word("vector", name),
    "task": lambda to, name, of: to.names.word("task", name),
    "tasks": lambda to, names, of: [to.names.word("task", name) for name in names],
    "dataset": lambda to, name, of: to.names.word("dataset", name),
    "config": lambda to, config, of: to.names.settings(config),
    "parameters": lambda to, path, of: f"{to.job(of.job)}.safetensors" if path else "",
    "agent": lambda to, text, of: build(text),
    "DeviceStatus.samples": lambda to, counts, of: {},
    "metrics": lambda to, values, of: to.names.measures(values),
    "evaluation": lambda to, values, of: to.names.measures(values),
    "JobSpec.evaluation": lambda to, settings, of: settings and to.struct(settings),
    "EvaluationSettings.metric": lambda to, name, of: to.names.word("measure", name),
    "EvaluationSettings.dataset": lambda to, path, of: f"/{to.names.of('dataset', path)}" if path else "",
    # What is made of fields of its own.
    "local": lambda to, value, of: value,
    "server": lambda to, value, of: value,
    "asynchronous": lambda to, value, of: value,
    "scaffold": lambda to, value, of: value,
    "personal": lambda to, value, of: to.personal(value) if value else value,
    "spec": lambda to, value, of: to.struct(value),
    "status": lambda to, value, of: to.struct(value),
    "leanings": lambda to, values, of: to.structs(values),
    "vectors": lambda to, values, of: to.structs(values),
    "requests": lambda to, values, of: to.structs(values),
    "closed": lambda to, values, of: to.structs(values),
    # Why.
    "reason": lambda to, text, of: reason(text),
    "problem": lambda to, text, of: reason(text),
    "JobEnded.reason": lambda to, text, of: free(text) if of.state == JobState.FAILED else reason(text),
    "DeviceRevoked.reason": lambda to, text, of: free(text),
    "Revoke.reason": lambda to, text, of: free(text),
    "Revoked.reason": lambda to, text, of: free(text),
    "text": lambda to, text, of: free(text),
    "code": lambda to, text, of: code(text),
    # Keys, and what is signed or sealed with them.
    "token": lambda to, name, of: to.parties.value(name),
    "token_key": lambda to, public, of: to.token_key(public, of.token),
    "join": lambda to, digest, of: to.join(digest),
    "challenge": lambda to, drawn, of: to.parties.value(drawn),
    "signing": lambda to, public, of: to.signing(public),
    "box": lambda to, public, of: to.box(public),
    "key": lambda to, public, of: to.box(public),
    "keys": lambda to, keys, of: [(to.names.of("device", name), to.box(public)) for name, public in keys],
    "update_key": lambda to, public, of: to.box(public),
    "digest": lambda to, digest, of: to.update(digest, of),
    "head": lambda to, head, of: to.heads[head],
    "transfer": lambda to, name, of: to.transfer(name) if name else b"",
    "layout": lambda to, digest, of: to.layouts[digest],
    "manifest": lambda to, blob, of: to.manifest(blob, of.job),
    "TrainingRequest.layout": lambda to, blob, of: to.layout(of.job),
    "ModelOffer.layout": lambda to, blob, of: to.layout(of.job),
}
