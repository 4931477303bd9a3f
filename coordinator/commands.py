"""What an operator can ask of a live coordinator: each command is an input of the core, or a look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broker.ports import Ports
from coordinator import views
from coordinator.access import Access
from coordinator.config import Config
from coordinator.control import CommandFailed
from coordinator.inputs import AnyInput, Cancel, Invite, Revoke, Submit
from coordinator.intake import Intake
from coordinator.keystore import Identity
from coordinator.ledger import Ledger
from coordinator.turn import CommandRefused
from schemas.enrolment import TOKEN_ID_BYTES, Token, token_to_text
from schemas.errors import JobRefused
from schemas.ids import checked_name, device_id
from schemas.jobs import parse_job
from schemas.keys import SigningKey
from schemas.limits import PROTOCOL_VERSION, TOKEN_VALID_S

PASSWORD_BYTES = 24


class Commands:
    """Handles the control socket's commands, named by ``op``."""

    def __init__(
        self,
        ledger: Ledger,
        identity: Identity,
        config: Config,
        access: Access,
        intake: Intake,
        ports: Ports,
    ) -> None:
        self._ledger = ledger
        self._identity = identity
        self._config = config
        self._access = access
        self._intake = intake
        self._ports = ports

    async def handle(self, command: dict[str, Any]) -> Any:
        """Raises `CommandFailed` with a text for the operator."""
        state = self._ledger.state
        match command:
            case {"op": "invite", "device": str(device)}:
                return await self._invite(device, command)
            case {"op": "revoke", "device": str(device)}:
                reason = str(command.get("reason") or "revoked by the operator")
                await self._submit(Revoke(device=device, reason=reason[:500]))
                return {"device": device, "state": "revoked"}
            case {"op": "submit", "spec": spec}:
                return await self._submit_job(spec, str(command.get("parameters") or ""))
            case {"op": "cancel", "job": str(job)}:
                await self._submit(Cancel(job=job))
                return views.summary(state.jobs[job])
            case {"op": "devices"}:
                return views.devices(state)
            case {"op": "jobs"}:
                return views.jobs(state)
            case {"op": "job", "job": str(job)}:
                view = views.job(state, job)
                if view is None:
                    raise CommandFailed(f"there is no job {job}; `fedbus-coordinator jobs list` shows them")
                return view
            case {"op": "status"}:
                return self._status()
        raise CommandFailed(f"unknown command {command.get('op')!r}: is this client of another version?")

    async def _submit(self, input_: AnyInput) -> None:
        try:
            await self._ledger.submit(input_)
        except CommandRefused as error:
            raise CommandFailed(str(error)) from error

    async def _invite(self, name: str, command: dict[str, Any]) -> dict[str, Any]:
        try:
            device = device_id(name)
            entity = checked_name(str(command.get("entity") or name), "entity")
        except ValueError as error:
            raise CommandFailed(str(error)) from error
        valid_s = float(command.get("valid_s") or TOKEN_VALID_S)
        random_bytes = self._ports.entropy.random_bytes
        token = Token(
            version=PROTOCOL_VERSION,
            root=self._identity.root,
            enrolment=self._identity.enrolment.public,
            id=random_bytes(TOKEN_ID_BYTES),
            seed=random_bytes(32),
            device=device,
            urls=self._config.urls_for_devices(),
            password=random_bytes(PASSWORD_BYTES).hex(),
        )
        expires_wall_s = self._ports.clock.wall_s() + valid_s
        await self._submit(
            Invite(
                token=token.id,
                token_key=SigningKey.from_seed(token.seed).public,
                device=device,
                entity=entity,
                expires_wall_s=expires_wall_s,
            )
        )
        await self._access.admit(device, token.password)
        return {"device": device, "token": token_to_text(token), "expires_wall_s": expires_wall_s}

    async def _submit_job(self, document: object, parameters: str) -> dict[str, Any]:
        try:
            spec = parse_job(document)
        except JobRefused as error:
            raise CommandFailed(str(error)) from error
        if parameters and not self._ports.files.exists(Path(parameters)):
            raise CommandFailed(f"job {spec.name}: there is no file {parameters} with initial parameters")
        await self._submit(Submit(job=spec.name, spec=spec, parameters=parameters))
        return views.summary(self._ledger.state.jobs[spec.name])

    def _status(self) -> dict[str, Any]:
        journal, dead = self._ledger.journal, self._intake.dead
        return {
            "federation": self._identity.federation.hex(),
            "broker": self._config.broker,
            "journal_index": journal.count,
            "journal_head": journal.head.hex(),
            "run_s": self._ledger.now().run_s,
            "dead_letters": dict(dead.counts),
            "dropped_messages": dict(self._intake.dropped),
            "newest_dead_letters": [
                {
                    "claimed": letter.claimed,
                    "code": letter.code,
                    "text": letter.text,
                    "wall_s": letter.wall_s,
                }
                for letter in list(dead.ring)[-10:]
            ],
        }
