"""One test per bad input that an agent can meet: refused, with a message that names cause and remedy."""

from __future__ import annotations

import asyncio
import os
import random
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.bus import BusRefused, Connected, Delivery
from broker.system import system_ports
from edge_agent import cli, presence
from edge_agent.identity import IdentityError, adopt, load, save
from edge_agent.ledger import RequestState
from schemas import work
from schemas.enrolment import Member, open_welcome, token_to_text
from schemas.errors import Forged
from schemas.events import Accept
from schemas.keys import SigningKey
from tests.edge_agent.answering import AnsweringBus
from tests.edge_agent.door import Door, refused
from tests.edge_agent.federation import Federation
from tests.edge_agent.party import CONFIG, HERE, UPDATE_KEY, Party, settled, tiny_model
from tests.sim.virtual_loop import run

ROOT = Path(__file__).resolve().parents[2]


def test_data_file_missing() -> None:
    door = Door()
    door.party.machine.files.remove(Path("/data/vision.npz"))
    refused(door.admit(door.request(door.model())), "data", "/data/vision.npz", "no such file", "agent.toml")


@pytest.mark.usefixtures("installed_tasks")
def test_data_file_empty(tmp_path: Path) -> None:
    from edge_agent.worker import Worker

    ports = system_ports()
    worker = Worker(ports, select.poll())
    out, data = tmp_path / "model", tmp_path / "empty.npz"
    data.touch()
    config = {"shape": [2], "classes": 2}
    made = worker.carry_out(work.Make(job="a", task="vision", config=config, seed=0, out=str(out)))  # type: ignore[arg-type]
    assert isinstance(made, work.Made)
    reply = worker.carry_out(
        work.Evaluate(
            task="vision",
            config=config,  # type: ignore[arg-type]
            model=str(out),
            layout=made.layout,
            dataset=str(data),
        )
    )
    assert isinstance(reply, work.Problem)
    assert reply.code == "data"
    assert str(data) in reply.text
    assert "npz" in reply.text


def test_task_not_allowed_by_policy() -> None:
    door = Door()
    door.party.config = replace(CONFIG, policy=replace(CONFIG.policy, tasks=["tabular"]))
    answer = door.admit(door.request(door.model()))
    refused(answer, "policy", "allows tabular, not vision", "policy.tasks")


def test_manifest_replayed() -> None:
    door = Door()
    old = door.request(door.model(version=3))
    assert isinstance(door.admit(old), Accept)
    assert isinstance(door.admit(door.request(door.model(version=4), number=2)), Accept)
    refused(door.admit(replace(old, request=3)), "base", "version 3", "version 4", "replayed")


def test_manifest_of_another_version_than_the_request() -> None:
    door = Door()
    request = door.request(door.model(version=3))
    refused(door.admit(replace(request, base=bytes(32))), "base", "version 3", "another model")


def test_manifest_of_another_job() -> None:
    door = Door()
    other = door.request(door.model(job="job-b"))
    mixed = replace(door.request(door.model()), manifest=other.manifest)
    refused(door.admit(mixed), "base", "job-b", "job-a")


def test_manifest_signed_by_somebody_else() -> None:
    door = Door()
    thief = SigningKey.from_seed(bytes(32))
    request = door.federation.request(door.model(), UPDATE_KEY, signer=thief)
    refused(door.admit(request), "base", "does not hold")


def test_job_epoch_lower_than_known() -> None:
    door = Door()
    assert isinstance(door.admit(door.request(door.model(version=1, epoch=2))), Accept)
    answer = door.admit(door.request(door.model(version=2, epoch=1), number=2))
    refused(answer, "base", "epoch 1", "epoch 2", "replayed")


def test_job_key_is_not_the_one_committed_to() -> None:
    door = Door()
    request = replace(door.request(door.model()), job_key=bytes(32))
    refused(door.admit(request), "base", "committed")


def test_request_replayed_after_its_record_is_gone() -> None:
    door = Door()
    assert isinstance(door.admit(door.request(door.model(version=1), number=9)), Accept)
    assert door.admit(door.request(door.model(version=2), number=8)) is None


def enroll(directory: Path, token: str, *more: str) -> int:
    return cli.main(["enroll", token, "--dir", str(directory), *more])


@pytest.fixture
def federation() -> Federation:
    return Federation()


@pytest.fixture
def bus(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> AnsweringBus:
    """What the command line finds in place of a broker."""
    bus = AnsweringBus(federation)
    monkeypatch.setattr(presence, "bus_for", lambda *_: bus)
    return bus


def one_line(lines: Iterable[str]) -> str:
    (line,) = lines
    assert line.startswith("fedbus-agent: ")
    return line


def test_state_directory_of_another_federation(
    tmp_path: Path, federation: Federation, bus: AnsweringBus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(tmp_path, token_to_text(federation.token())) == 0
    other = Federation(1)
    assert enroll(tmp_path, token_to_text(other.token())) == 1
    line = one_line(capsys.readouterr().err.splitlines())
    for words in (federation.id.hex(), other.id.hex(), str(tmp_path), "--dir"):
        assert words in line


def test_enrolled_already_is_no_failure(
    tmp_path: Path, federation: Federation, bus: AnsweringBus, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert enroll(tmp_path, token_to_text(federation.token())) == 0
    out = capsys.readouterr()
    assert "is enrolled already in federation" in out.out
    assert out.err == ""
    assert len(bus.joins) == 1


@pytest.mark.parametrize(
    "why",
    [
        "this coordinator never made this token for device press-07; ask the operator for a new one",
        "the token for device press-07 expired 3 min ago; ask the operator for a new one",
        "the token for device press-07 was used already, with other keys; ask the operator for a new one",
    ],
)
def test_token_unknown_expired_or_reused(
    tmp_path: Path, federation: Federation, bus: AnsweringBus, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    bus.answers = lambda join: [federation.welcome(join, refused=why)]
    assert enroll(tmp_path, token_to_text(federation.token())) == 1
    assert why in one_line(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("text", ["", "xx", "ä", "A" * 5_000])
def test_token_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert enroll(tmp_path, text) == 1
    assert "token" in one_line(capsys.readouterr().err.splitlines())


def test_no_coordinator_answers(
    tmp_path: Path, federation: Federation, bus: AnsweringBus, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.silent = 1_000
    assert enroll(tmp_path, token_to_text(federation.token()), "--wait-s", "0.2") == 1
    line = one_line(capsys.readouterr().err.splitlines())
    assert "no answer within 0.2 s" in line
    assert "run the same command again" in line


class RefusingBus(AnsweringBus):
    """The broker knows the user by another password."""

    async def incoming(self) -> AsyncIterator[Delivery | Connected]:
        yield Connected(1)
        raise BusRefused("mqtt test: Not authorized")


def test_token_replaced_by_a_second_invitation(
    tmp_path: Path,
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(presence, "bus_for", lambda *_: RefusingBus(federation))
    assert enroll(tmp_path, token_to_text(federation.token())) == 1
    line = one_line(capsys.readouterr().err.splitlines())
    for words in ("press-07", "newer invitation", "fedbus-coordinator invite press-07", "Not authorized"):
        assert words in line


def test_root_substituted(federation: Federation) -> None:
    own = federation.member()
    thief = SigningKey.from_seed(bytes(32))
    join = own.join(federation.token())
    with pytest.raises(Forged, match="key set"):
        open_welcome(federation.welcome(join, root=thief), own.box, join)
    ports = Party().machine.ports
    save(ports.files, HERE, replace(own, root=thief.public))
    with pytest.raises(IdentityError, match="don't hold"):
        load(ports.files, HERE)


def test_key_set_older_than_known(federation: Federation) -> None:
    own = federation.member()
    join = own.join(federation.token())

    def member(number: int) -> Member:
        return open_welcome(federation.welcome(join, number=number), own.box, join)

    newer = adopt(own, member(3))
    assert newer.keys().number == 3
    with pytest.raises(Forged, match="key set 2 is older than 3"):
        adopt(newer, member(2))


def test_package_shadowed_by_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "__init__.py").touch()
    for module in ("edge_agent.cli", "edge_agent"):
        arguments = ["status"] if module == "edge_agent.cli" else []
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--dir", str(tmp_path)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        line = one_line(done.stderr.splitlines())
        assert str(tmp_path / "schemas") in line
        assert "another directory" in line


def test_device_not_enrolled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--dir", str(tmp_path)]) == 1
    line = one_line(capsys.readouterr().err.splitlines())
    assert "no device is enrolled here" in line
    assert f"fedbus-agent enroll --token-file FILE --dir {tmp_path}" in line


def test_identity_file_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "identity").write_bytes(b"\x00damaged")
    assert cli.main(["status", "--dir", str(tmp_path)]) == 1
    line = one_line(capsys.readouterr().err.splitlines())
    assert "identity: damaged" in line
    assert "backup" in line


def test_garbage_on_the_down_topic_changes_nothing() -> None:
    async def play() -> None:
        draw = random.Random(0)
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            real = await coordinator.request(tiny_model(party.federation))
            await settled(party, RequestState.RECEIPTED)
            before = party.machine.files.read(HERE / "ledger")
            for start in (b"", b"FBE1", b"FBC1", b"FBW1"):
                for size in (0, 1, 5, 70, 600, 5_000):
                    await coordinator.send_raw(start + draw.randbytes(size))
            for cut in range(0, len(real), 37):
                await coordinator.send_raw(real[:cut])
                await coordinator.send_raw(real[:cut] + bytes([real[cut] ^ 1]) + real[cut + 1 :])
            await asyncio.sleep(100)
            assert party.machine.files.read(HERE / "ledger") == before
            await coordinator.request(tiny_model(party.federation, version=1), number=2)
            await coordinator.until(lambda: len(party.worker.orders) == 2)

    run(play)
