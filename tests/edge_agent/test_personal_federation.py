"""Personal layers over the whole way: production coordinator and agents, real workers, memory between."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.keystore import KeyStore, load_identity
from coordinator.replay import replay
from coordinator.store import Store
from edge_agent import private
from tests.edge_agent.test_tabular_federation import DEVICES, PORTS, ROUNDS, trained, write_cancer

pytestmark = [pytest.mark.usefixtures("installed_tasks"), pytest.mark.live]


async def test_every_device_keeps_its_own_layers_and_no_version_has_them(tmp_path: Path) -> None:
    parts, _, config = write_cancer(tmp_path)
    await trained(tmp_path, parts, {**config, "hidden": 4}, personal={"layers": ["output.*"]})
    home = tmp_path / "c"
    result = replay(PORTS, home)
    assert result["equal"]
    assert [version["updates"] for version in result["jobs"]["cancer"]] == [0, *[DEVICES] * ROUNDS]
    store = Store(
        PORTS.files, home, load_identity(PORTS.files, home), KeyStore(PORTS.files, home, PORTS.entropy)
    )
    layout = store.layout("cancer")
    border = 4 * layout.trained_count
    models = [store.model("cancer", bytes.fromhex(v["recorded"])) for v in result["jobs"]["cancer"]]
    assert len({model[:border] for model in models}) == 1 + ROUNDS
    assert len({model[border:] for model in models}) == 1
    own = {private.read(PORTS.files, tmp_path / path.stem / private.DIR / "cancer", layout) for path in parts}
    assert len(own | {models[0][border:]}) == DEVICES + 1
    assert b"" not in own
