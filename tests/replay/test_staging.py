"""A coordinator and devices go on from an export, with the keys that are in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.mailbox import Mailbox, Sequencer
from broker.ports import Ports
from coordinator.broker_admin.roster import Roster, matches
from coordinator.config import Config
from coordinator.keystore import load_identity
from coordinator.rekey.export import export
from coordinator.replay import replay
from coordinator.state import JobState
from edge_agent import identity as agents
from schemas import events as e
from schemas.enrolment import Member, Token
from schemas.ids import DeviceId
from schemas.keys import open_certificate
from tests.coordinator.pruning import HOME, recorded
from tests.replay.history import COUNT, DEVICES, found, record, spill, unsynced
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import IN_MEMORY, TASK, Federation, StandIn, federation, spec


def returned(fed: Federation, folder: Path) -> StandIn:
    """The device whose state is in ``folder``."""
    own = agents.load(fed.ports.files, folder)
    token = Token(1, own.root, fed.identity.enrolment.public, bytes(16), bytes(32), own.device, own.urls, "")
    device = StandIn(token, fed.dial, fed.ports, folder)
    device.key, device.box = own.signing, own.box
    sequencer = Sequencer(fed.ports.files, folder / agents.SEQUENCE_FILE)
    device.mailbox = Mailbox(device.bus, own.federation, own.signing, sequencer, fed.ports.entropy)
    device.member = Member(
        key_set=own.keys(),
        key_set_blob=own.key_set,
        certificate=open_certificate(own.certificate, own.keys(), DeviceId(own.device)),
        certificate_blob=own.certificate,
        challenge=own.challenge,
    )
    return device


def staged(tmp_path: Path) -> tuple[Path, Ports]:
    """An export, as a coordinator finds it that is started over another broker."""
    home, told, ports = record(tmp_path / "home"), tmp_path / "told", unsynced()
    export(ports, home, told, Config(broker=IN_MEMORY.broker))
    return told, replace(sim_ports(seed=1), files=ports.files)


def test_a_coordinator_and_a_device_go_on_from_an_export(tmp_path: Path) -> None:
    told, ports = staged(tmp_path)

    async def play() -> None:
        async with federation(told, ports, COUNT) as fed:
            assert fed.job("job-1").state is JobState.FINISHED
            device = returned(fed, told / "devices" / "device-1")
            await device.__aenter__()
            await device.report(TASK)
            await fed.command("submit", spec=spec("more"))
            request = await device.next(e.TrainingRequest)
            await device.answer(request, np.ones(COUNT, np.float32))
            assert (await device.next(e.Verdict)).folded
            await fed.until(lambda: fed.job("more").state is JobState.FINISHED)

    virtual_loop.run(play)


def test_an_open_round_goes_on_in_an_export(tmp_path: Path) -> None:
    """One of two updates was received; the other device answers with its throw-away key."""
    home, ports = tmp_path / "home", unsynced()
    spill(dict(found(recorded().files, HOME)), home)
    told = tmp_path / "told"
    export(ports, home, told, Config(broker=IN_MEMORY.broker))

    async def play() -> None:
        async with federation(told, replace(sim_ports(seed=1), files=ports.files), COUNT) as fed:
            job = fed.job("job-2")
            version, open_round = len(job.versions), job.round
            assert [request.device for request in open_round.order] == ["device-1"]
            device = returned(fed, told / "devices" / "device-2")
            await device.__aenter__()
            request = await device.next(e.TrainingRequest)
            await device.answer(request, np.ones(COUNT, np.float32))
            assert (await device.next(e.Verdict)).folded
            await fed.until(lambda: len(job.versions) == version + 1)

    virtual_loop.run(play)
    assert replay(ports, told)["equal"]


def test_every_device_of_an_export_can_log_in_at_a_broker_and_is_certified(tmp_path: Path) -> None:
    told, ports = staged(tmp_path)
    roster = Roster(ports, told).read()
    ours = load_identity(ports.files, told)
    for number in range(1, len(DEVICES) + 1):
        own = agents.load(ports.files, told / "devices" / f"device-{number}")
        assert own.federation == ours.federation
        assert own.entity() == "entity-1"
        assert matches(roster[DeviceId(own.device)], own.password)
