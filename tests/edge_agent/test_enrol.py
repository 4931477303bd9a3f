"""Enrolment on the device: crashes repeat the same join, and nothing but the federation's own is believed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace as replaced
from pathlib import Path

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from edge_agent import enrol, identity
from edge_agent.identity import Identity
from schemas.codec import pack
from schemas.enrolment import Token
from schemas.envelope import parse
from schemas.errors import TokenRefused
from schemas.events import ChallengeAnswer
from tests.edge_agent.answering import AnsweringBus
from tests.edge_agent.federation import Federation
from tests.edge_agent.party import HERE
from tests.sim.machine import SimMachine, sim_machine
from tests.sim.virtual_loop import run


async def enrolled(machine: SimMachine, token: Token, bus: AnsweringBus) -> Identity:
    own = enrol.prepare(machine.ports, HERE, token)
    async with asyncio.timeout(600):
        return await enrol.enrol(machine.ports, HERE, own, bus)


def test_a_welcome_makes_an_active_member_that_is_found_again() -> None:
    federation, machine = Federation(), sim_machine()
    bus = AnsweringBus(federation)
    own = run(lambda: enrolled(machine, federation.token(), bus))
    assert own.active
    assert own.token == "", "the token's seed is not kept longer than it is needed"
    assert own.entity() == "works"
    assert identity.load(machine.files, HERE) == own
    (proof,) = bus.proofs
    assert parse(proof).clear.sender == own.signing.id
    assert federation.read(own, proof) == ChallengeAnswer(challenge=federation.challenge)


def test_the_join_is_repeated_until_an_answer_comes() -> None:
    federation, machine = Federation(), sim_machine()
    bus = AnsweringBus(federation, silent=3)
    assert run(lambda: enrolled(machine, federation.token(), bus)).active
    assert len(bus.joins) == 4
    assert len({join.digest() for join in bus.joins}) == 1


@pytest.mark.parametrize("at", range(1, 16))
def test_a_crash_at_any_point_repeats_the_same_join_or_goes_on(at: int) -> None:
    federation, machine = Federation(), sim_machine()
    token, bus = federation.token(), AnsweringBus(Federation())
    left = at

    def power(what: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            machine.halt()

    machine.files.on_change = power

    async def first_life() -> None:
        try:
            await enrolled(machine, token, bus)
        except OSError:
            assert left <= 0

    run(first_life)
    machine.files.on_change = None
    machine.crash(random.Random(at))
    again = replaced(bus, joins=list(bus.joins))
    assert run(lambda: enrolled(machine, token, again)).active
    assert len({join.digest() for join in again.joins}) <= 1, "the token is never used with other keys"


def test_an_enrolled_directory_keeps_its_keys_when_asked_again() -> None:
    federation, machine = Federation(), sim_machine()
    first = run(lambda: enrolled(machine, federation.token(), AnsweringBus(federation)))
    assert enrol.prepare(machine.ports, HERE, replace(federation.token(), id=bytes([1] * 16))) == first


def test_a_token_that_was_never_answered_gives_way_to_a_new_one() -> None:
    federation, machine = Federation(), sim_machine()
    first = enrol.prepare(machine.ports, HERE, federation.token())
    second = enrol.prepare(machine.ports, HERE, replace(federation.token(), id=bytes([1] * 16)))
    assert second.signing_seed != first.signing_seed


def test_a_refusal_ends_the_enrolment_with_the_coordinators_words() -> None:
    federation, machine = Federation(), sim_machine()
    bus = AnsweringBus(
        federation, answers=lambda join: [federation.welcome(join, refused="expired 3 min ago")]
    )
    with pytest.raises(TokenRefused, match="expired 3 min ago"):
        run(lambda: enrolled(machine, federation.token(), bus))
    with pytest.raises(identity.IdentityError, match="the enrolment was not finished"):
        identity.load(machine.files, HERE)


def test_the_authority_of_the_token_is_kept() -> None:
    federation, machine = Federation(), sim_machine()
    token = replace(federation.token(), version=2, ca="PEM")
    own = run(lambda: enrolled(machine, token, AnsweringBus(federation)))
    assert own.ca == "PEM"
    assert own.credentials().tls.ca == "PEM"


def test_an_identity_from_before_there_were_authorities_is_read() -> None:
    federation, machine = Federation(), sim_machine()
    own = run(lambda: enrolled(machine, federation.token(), AnsweringBus(federation)))
    fields = to_builtins(own, builtin_types=(bytes,))
    del fields["ca"]
    machine.files.open(HERE / "identity").truncate(0)
    machine.files.open(HERE / "identity").append(pack(fields))
    assert identity.load(machine.files, HERE) == own


def test_garbage_in_place_of_a_welcome_changes_nothing() -> None:
    federation, machine = Federation(), sim_machine()
    bus = AnsweringBus(
        federation, answers=lambda join: [b"FBW1", b"FBW1" + bytes(300), federation.welcome(join)]
    )
    assert run(lambda: enrolled(machine, federation.token(), bus)).active
