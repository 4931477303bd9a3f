"""Golden journals: what a release wrote, kept, so that every later one must verify and replay it.

``python -m tests.replay.golden NAME`` adds one, ``golden_journals/NAME.zip``: the history of
`tests.replay.history`, exported under throw-away keys in several segments, once whole and once pruned, and
what was true of them then. One is added per release, and none is ever changed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from broker.bodies import Bodies
from broker.ports import Ports
from coordinator import prune
from coordinator.config import Config
from coordinator.entries import Sent, Turned
from coordinator.explain import Reader
from coordinator.keystore import load_identity
from coordinator.recovery import open_whole
from coordinator.rekey.export import export
from coordinator.replay import replay
from coordinator.state import State
from coordinator.testing import RECORDING
from coordinator.verify import verify
from tests.replay.history import record, unsynced

HERE: Final = Path(__file__).parent / "golden_journals"
EXPECTED: Final = "expected.json"
SEGMENT_BYTES: Final = 20_000
VERSIONS_KEPT: Final = 2  # of the pruned one
BYTES_MAX: Final = 200_000
FORMS: Final = ("whole", "pruned")


def told(ports: Ports, home: Path) -> dict[str, Any]:
    """What a journal says, and what follows from it. Raises ValueError if anything is wrong with it."""
    found = verify(ports.files, home, load_identity(ports.files, home).federation)
    result = replay(ports, home)
    if found.damage or not result["equal"]:
        raise ValueError(f"{home}: {found.damage[:1] or result['difference']}")
    return {
        "entries": found.entries,
        "head": found.head.hex(),
        "segments": found.segments,
        "snapshots": found.snapshots,
        "bodies": found.bodies,
        "pruned": result["pruned"],
        "versions": {name: [one["computed"] for one in of] for name, of in result["jobs"].items()},
    }


def kinds(ports: Ports, home: Path) -> set[str]:
    """What is in a journal: facts, inputs, and what devices said and were told."""
    identity = load_identity(ports.files, home)
    journal, base = open_whole(ports.files, home, identity.federation)
    found = set()
    try:
        state = base.recovered.state if base else State()
        reader = Reader(identity, Bodies(ports.files, home / "bodies"), state)
        for _, entry, line in reader.lines(journal):
            found.add(f"{'told' if isinstance(entry, Sent) else 'came'} {line['what']}")
            if isinstance(entry, Turned):
                found |= {f"fact {fact.__struct_config__.tag}" for fact in entry.facts}
    finally:
        journal.close()
    return found


def make(folder: Path) -> None:
    """The two journals of this release in ``folder``, and what is true of them."""
    ports, source = unsynced(), record(folder / "source")
    whole, pruned = (folder / form for form in FORMS)
    export(ports, source, whole, Config(broker="embedded:20000"), segment_bytes=SEGMENT_BYTES)
    shutil.rmtree(source)
    shutil.copytree(whole, pruned)
    with patch.object(prune, "VERSIONS_KEPT", VERSIONS_KEPT):
        prune.prune(ports, pruned)
    (pruned / "records.db").unlink()
    expected = {form: told(ports, folder / form) for form in FORMS}
    (folder / EXPECTED).write_text(json.dumps(expected, indent=1) + "\n")


def pack(folder: Path, target: Path) -> None:
    """As one file. Raises FileExistsError, and ValueError if it is too large to keep."""
    with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
    if target.stat().st_size > BYTES_MAX:
        target.unlink()
        raise ValueError(f"{target.name} has more than {BYTES_MAX} bytes: make the history shorter")


def main(name: str) -> None:
    """Add the golden journal ``name``; the plugin's recording is the same, from then on."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        pack(Path(folder), HERE / f"{name}.zip")
        RECORDING.unlink(missing_ok=True)
        pack(Path(folder) / FORMS[0], RECORDING)


if __name__ == "__main__":
    main(*sys.argv[1:])
