"""What an operator can ask of a live coordinator: each command is an input of the core, or a look at it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from broker.bus import Bus
from broker.ports import Ports
from broker.room import Room
from coordinator import views
from coordinator.broker_admin.access import Access
from coordinator.broker_admin.roster import AccessError, tap_id
from coordinator.config import PASSWORD_BYTES, Config, ConfigError
from coordinator.connection import authority
from coordinator.control import CommandFailed
from coordinator.inputs import AnyInput, Cancel, Invite, Release, Revoke, Submit
from coordinator.intake import Intake
from coordinator.keystore import Identity
from coordinator.ledger import Ledger
from coordinator.tap.place import Credentials, encode_credentials
from coordinator.turn import CommandRefused
from schemas.enrolment import TOKEN_ID_BYTES, TOKEN_VERSION, TOKEN_VERSION_CA, Token, token_to_text
from schemas.errors import JobRefused
from schemas.ids import DeviceId, broker_user, checked_name, device_id
from schemas.jobs import parse_job
from schemas.keys import SigningKey
from schemas.limits import CA_CHARS_MAX, KIB, TOKEN_VALID_S

RABBITMQ_CHUNK_BYTES = 128 * KIB
"""Of jobs that don't say: RabbitMQ keeps some chunks in memory for every connection that sent any."""
TOLD_S = 20.0  # for the broker to shut a tap out


class Commands:
    """Handles the control socket's commands, named by ``op``."""

    def __init__(
        self,
        ledger: Ledger,
        identity: Identity,
        config: Config,
        access: Access,
        intake: Intake,
        bus: Bus,
        room: Room,
        ports: Ports,
    ) -> None:
        self._ledger = ledger
        self._identity = identity
        self._config = config
        self._access = access
        self._intake = intake
        self._bus = bus
        self._room = room
        self._ports = ports

    async def handle(self, command: dict[str, Any]) -> Any:
        """Raises `CommandFailed` with a text for the operator."""
        state = self._ledger.state
        match command:
            case {"op": "invite", "device": str(device)}:
                return await self._invite(device, command)
            case {"op": "tap", "name": str(name)}:
                return await self._tap(name, remove=bool(command.get("remove")))
            case {"op": "revoke", "device": str(device)}:
                reason = str(command.get("reason") or "revoked by the operator")
                await self._submit(Revoke(device=device, reason=reason[:500]))
                return {"device": device, "state": "revoked"}
            case {"op": "release", "device": str(device)}:
                await self._submit(Release(device=device))
                return {"device": device, "state": "released"}
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
            case {"op": "dead-letters"}:
                dead = self._intake.dead
                return {"counts": dict(dead.counts), "letters": [asdict(letter) for letter in dead.ring]}
        raise CommandFailed(f"unknown command {command.get('op')!r}: is this client of another version?")

    async def _submit(self, input_: AnyInput) -> None:
        if self._room.problem:
            raise CommandFailed(self._room.problem)
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
        token, notes = self._new_token(device)
        try:
            text = token_to_text(token)
        except ValueError as error:
            raise CommandFailed(f"device {device}: {error} in device_urls") from error
        valid_s = float(command.get("valid_s") or TOKEN_VALID_S)
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
        try:
            notes.append(await self._access.admit(device, token.password))
        except AccessError as error:
            raise CommandFailed(f"device {device}: {error}; then invite it again") from error
        return {
            "device": device,
            "token": text,
            "expires_wall_s": expires_wall_s,
            "notes": [note for note in notes if note],
        }

    async def _tap(self, name: str, *, remove: bool) -> dict[str, Any]:
        """Let a tap in at the broker, with a new password, or shut it out."""
        try:
            tap = tap_id(name)
            if remove:
                async with asyncio.timeout(TOLD_S):
                    await self._access.shut_out(tap)
                return {"tap": name, "state": "removed"}
            ca = authority(self._config, self._ports.files)
            password = self._ports.entropy.random_bytes(PASSWORD_BYTES).hex()
            note = await self._access.admit(tap, password)
        except TimeoutError as error:
            raise CommandFailed(f"tap {name}: the broker could not be told yet; do this again") from error
        except (ValueError, ConfigError, AccessError) as error:
            raise CommandFailed(f"tap {name}: {error}") from error
        identity, devices = self._identity, self._ledger.state.devices
        credentials = Credentials(
            federation=identity.federation.hex(),
            root=identity.root,
            key_set=identity.key_set,
            devices={device.id: [device.signing] for device in devices.values()},
            user=broker_user(identity.federation, tap),
            password=password,
            urls=self._config.urls_for_devices(),
            ca=ca,
        )
        return {"credentials": encode_credentials(credentials), "notes": [note] if note else []}

    def _new_token(self, device: DeviceId) -> tuple[Token, list[str]]:
        """And what the operator must know about it."""
        urls = self._config.urls_for_devices()
        notes: list[str] = []
        try:
            secure = any(url.startswith(("mqtts:", "amqps:")) for url in urls)
            ca = authority(self._config, self._ports.files) if secure else ""
        except ConfigError as error:
            raise CommandFailed(str(error)) from error
        if len(ca) > CA_CHARS_MAX:
            notes.append(
                f"{self._config.ca} is too large for a token: give the device this file, and "
                f"`fedbus-agent enroll --ca FILE`"
            )
            ca = ""
        random_bytes = self._ports.entropy.random_bytes
        token = Token(
            version=TOKEN_VERSION_CA if ca else TOKEN_VERSION,
            root=self._identity.root,
            enrolment=self._identity.enrolment.public,
            id=random_bytes(TOKEN_ID_BYTES),
            seed=random_bytes(32),
            device=device,
            urls=urls,
            password=random_bytes(PASSWORD_BYTES).hex(),
            ca=ca,
        )
        return token, notes

    async def _submit_job(self, document: object, parameters: str) -> dict[str, Any]:
        if isinstance(document, dict) and self._config.on_rabbitmq():
            document = {"chunk_bytes": RABBITMQ_CHUNK_BYTES} | document
        try:
            spec = parse_job(document)
        except JobRefused as error:
            raise CommandFailed(str(error)) from error
        if parameters and not self._ports.files.exists(Path(parameters)):
            raise CommandFailed(f"job {spec.name}: there is no file {parameters} with initial parameters")
        await self._submit(Submit(job=spec.name, spec=spec, parameters=parameters))
        return views.summary(self._ledger.state.jobs[spec.name])

    def _status(self) -> dict[str, Any]:
        journal = self._ledger.journal
        return {
            "federation": self._identity.federation.hex(),
            "broker": self._config.broker,
            "broker_problem": self._bus.problem,
            "disk_problem": self._room.problem,
            "alarms": views.alarms(self._ledger.state),
            "transfers": self._intake.transfers(),
            "journal_index": journal.count,
            "journal_head": journal.head.hex(),
            "run_s": self._ledger.now().run_s,
            "dead_letters": dict(self._intake.dead.counts),
            "dropped_messages": dict(self._intake.dropped),
        }
