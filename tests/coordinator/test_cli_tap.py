"""What the command line tells of a tap and of its recording."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from broker.system import system_ports
from coordinator.broker_admin.access import EmbeddedAccess
from coordinator.broker_admin.mosquitto import rules, users_of
from coordinator.broker_admin.roster import Login, tap_id
from coordinator.cli.main import main
from coordinator.config import Config
from coordinator.keystore import load_identity
from coordinator.setup import embedded_broker
from coordinator.tap.place import read_credentials
from schemas import topics
from schemas.ids import broker_user
from tests.coordinator.serving import answer, served
from tests.coordinator.tapping import PARAMETERS, tapped, train
from tests.standin import federation

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tap's folder: of two devices that join, and train two rounds."""
    base = tmp_path_factory.mktemp("tapped")

    async def record() -> None:
        async with federation(base / "home", system_ports(), PARAMETERS) as fed, tapped(fed, base / "tap"):
            await train(fed)

    asyncio.run(record())
    return base / "tap"


def run(capsys: Capsys, *arguments: str, status: int = 0) -> str:
    """What a command prints: on standard output, or its error."""
    capsys.readouterr()
    assert main(list(arguments)) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_ls_says_who_sent_what_to_whom(recorded: Path, capsys: Capsys) -> None:
    lines = json.loads(run(capsys, "journal", "ls", "--dir", str(recorded), "--last", "0", "--json"))
    assert [line["index"] for line in lines] == list(range(1, len(lines) + 1))
    said = {(line["from"], line["to"], line["what"]) for line in lines}
    assert said == {
        ("tap", "tap", "listening"),
        ("press-07", "coordinator", "join"),
        ("coordinator", "press-07", "welcome"),
        ("press-08", "coordinator", "join"),
        ("coordinator", "press-08", "welcome"),
        ("press-07", "coordinator", "sealed"),
        ("coordinator", "press-07", "sealed"),
        ("press-08", "coordinator", "sealed"),
        ("coordinator", "press-08", "sealed"),
        ("press-07", "coordinator", "update"),
        ("press-08", "coordinator", "update"),
        ("press-07", "coordinator", "chunk"),
        ("press-08", "coordinator", "chunk"),
        ("coordinator", "press-07", "chunk"),
        ("coordinator", "press-08", "chunk"),
    }
    table = run(capsys, "journal", "ls", "--dir", str(recorded), "--device", "press-08", "--what", "update")
    assert "press-08" in table
    assert "press-07" not in table


def entry(capsys: Capsys, recorded: Path, what: str, device: str) -> str:
    found = run(capsys, "journal", "ls", "--dir", str(recorded), "--what", what, "--device", device, "--json")
    index = json.loads(found)[-1]["index"]
    return run(capsys, "journal", "show", str(index), "--dir", str(recorded))


def test_show_says_that_what_a_tap_cannot_open_is_sealed(recorded: Path, capsys: Capsys) -> None:
    text = entry(capsys, recorded, "update", "press-08")
    assert "press-08 → coordinator: update, " in text
    assert "sealed: only coordinator can open it" in text
    assert "signature: not checked: its key was not told to this tap" in text
    assert "in the clear: seq " in text
    text = entry(capsys, recorded, "welcome", "press-07")
    assert "coordinator → press-07: welcome, " in text
    assert "sealed: only press-07 can open it" in text
    assert "the tap listens from here on" in run(capsys, "journal", "show", "1", "--dir", str(recorded))
    assert "there is no entry 99999" in run(
        capsys, "journal", "show", "99999", "--dir", str(recorded), status=1
    )
    found = run(capsys, "journal", "ls", "--dir", str(recorded), "--what", "sealed", "--json")
    told = [line["index"] for line in json.loads(found) if line["to"] == "press-07"]
    assert "signature: holds" in run(capsys, "journal", "show", str(told[-1]), "--dir", str(recorded))


def test_verify_checks_chain_signatures_and_chunks(recorded: Path, capsys: Capsys) -> None:
    view = json.loads(run(capsys, "journal", "verify", "--dir", str(recorded), "--json"))
    assert (view["whole"], view["foreign"], view["gaps"]) == (True, [], 0)
    assert view["signed"] > 10, "the coordinator's"
    assert view["unchecked"] > 10, "of devices that joined after the tap was told what it knows"
    assert view["chunks"] == 12
    assert "each as it was written" in run(capsys, "journal", "verify", "--dir", str(recorded))


def test_a_byte_that_was_changed_is_found_and_named(recorded: Path, capsys: Capsys) -> None:
    path = recorded / "journal" / "00000001.fbj"
    whole = path.read_bytes()
    for position in (80, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        error = run(capsys, "journal", "verify", "--dir", str(recorded), status=1)
        assert f"{path}: damaged at byte " in error
    path.write_bytes(whole)
    run(capsys, "journal", "verify", "--dir", str(recorded))


@pytest.mark.parametrize("command", [("replay",), ("journal", "prune", "--dir"), ("status", "--dir")])
def test_what_needs_keys_and_decisions_is_refused_with_the_remedy(
    command: tuple[str, ...], recorded: Path, capsys: Capsys
) -> None:
    error = run(capsys, *command, str(recorded), status=2)
    assert (
        f"{recorded} is a tap's recording: sealed messages, with neither the coordinator's keys nor" in error
    )
    assert "name the coordinator's state directory" in error


async def test_the_coordinator_makes_a_taps_credentials(tmp_path: Path, capsys: Capsys) -> None:
    async with served(tmp_path / "home") as fed:
        await fed.device("press-07")
        text = await answer(fed, capsys, "broker", "tap", "auditor")  # behind log lines, in this process
        (tmp_path / "auditor.tap").write_text(text[text.index("{") :])
        found = read_credentials(system_ports().files, tmp_path / "auditor.tap")
        signing = fed.coordinator.ledger.state.devices["press-07"].signing
    federation_id = fed.identity.federation
    assert (found.id, found.urls) == (federation_id, ["memory:test"])
    assert found.user == broker_user(federation_id, "tap@auditor")
    assert found.devices == {"press-07": [signing]}
    assert found.password not in repr(found)
    assert found.password not in (fed.directory / "broker" / "roster.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "whose messages, and as which user? --tap FILE"),
        (("--federation", "00"), "whose messages"),
        (("--broker", "mqtt://b", "--federation", "00"), "federation '00': write its 32 digits"),
        (("--broker", "mqtt://coordinator%4000000000@b", "--federation", "00" * 16), "tap would push the"),
        (("--broker", "mqtt://[b", "--federation", "00" * 16), "broker URL: "),
        (("--broker", "http://b", "--federation", "00" * 16), "scheme 'http' is not supported"),
        (("--tap", "gone.tap"), "gone.tap: No such file"),
    ],
)
def test_what_a_tap_needs_is_asked_for(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: Capsys
) -> None:
    capsys.readouterr()
    assert main(["journal", "record", str(tmp_path / "tap"), *arguments]) in (1, 2)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "tap").exists()


def test_credentials_that_are_not_as_they_were_printed_are_refused(tmp_path: Path, capsys: Capsys) -> None:
    path = tmp_path / "a.tap"
    path.write_text("{}")
    assert "a.tap: not a tap's credentials" in run(
        capsys, "journal", "record", str(tmp_path / "tap"), "--tap", str(path), status=2
    )


def test_a_tap_gets_a_certificate_of_its_own_where_the_broker_wants_one(
    tmp_path: Path, capsys: Capsys
) -> None:
    home = str(tmp_path / "fed")
    run(capsys, "init", "--dir", home, "--broker", "mqtts://b")
    run(capsys, "broker", "mosquitto", "--tls", "--client-certificates", "--dir", home)
    made = json.loads(run(capsys, "broker", "certificate", "tap@auditor", "--dir", home, "--json"))
    (leaf,) = made["certificates"]
    federation_id = load_identity(system_ports().files, tmp_path / "fed").federation
    certificate = x509.load_pem_x509_certificate(Path(leaf["file"]).read_bytes())
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == broker_user(federation_id, "tap@auditor")
    assert "journal record --certificate FILE" in made["next"][1]


async def test_each_broker_lets_a_tap_read_all_and_write_nothing(tmp_path: Path) -> None:
    ports = system_ports()
    async with federation(tmp_path / "home", ports) as fed:
        federation_id, tap = fed.identity.federation, tap_id("auditor")
    known = users_of(federation_id, {tap: Login("", "")})
    up, down = topics.all_up(federation_id), topics.all_down(federation_id)
    assert rules(known) == f"user {known[0].name}\ntopic read {up}\ntopic read {down}\n"
    broker = embedded_broker(ports, tmp_path, Config(broker="embedded:1883"))
    ports.files.make_dir(broker.users_path.parent)
    access = EmbeddedAccess(ports, broker, federation_id)
    await access.admit(tap, "a password")
    (rights,) = json.loads(broker.users_path.read_text()).values()
    assert (rights["publish"], rights["subscribe"]) == ([], [up, down])
    await access.shut_out(tap)
    assert json.loads(broker.users_path.read_text()) == {}
