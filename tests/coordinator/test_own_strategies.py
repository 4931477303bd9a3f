"""Server optimisers of other packages: found by their entry points, followed by replay, missed by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from coordinator.cli.errors import EXPECTED
from coordinator.control import CommandFailed
from coordinator.recording import Recording
from coordinator.replay import replay
from coordinator.strategies import NoSuchOptimiser, server_optimiser
from coordinator.strategies.optimiser import Floats
from coordinator.whatif import Settings, what_if
from schemas.errors import JobRefused
from schemas.job_checks import optimisers
from schemas.jobs import ServerSettings, parse_job
from tests.coordinator.test_server_optimisers import HOME, killed, mean, models, recorded
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import federation, spec

ENTRIES = """[fedbus.strategies]
sign = tests.coordinator.test_own_strategies:Sign
lost = tests.coordinator.nowhere:Lost
half = tests.coordinator.test_own_strategies:Half
"""


class Sign:
    """A step of the same length in every coordinate, and a vector that counts them."""

    begins = (0.0,)

    def __init__(self, settings: ServerSettings) -> None:
        self._rate = settings.rate

    def step(self, mean: Floats, moments: Floats) -> None:
        moments += 1.0
        np.multiply(np.sign(mean), self._rate, out=mean)


class Half:
    """No optimiser: it keeps nothing, and can't step."""

    begins = ()

    def __init__(self, settings: ServerSettings) -> None:
        pass


@contextmanager
def distribution(folder: Path) -> Iterator[None]:
    """A distribution with them, on the path of this process."""
    info = folder / "own_strategies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-strategies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[None]:
    with distribution(tmp_path):
        yield


@pytest.mark.usefixtures("installed")
def test_a_job_may_name_one_and_its_recording_is_replayed_with_it() -> None:
    assert optimisers()[-3:] == ["half", "lost", "sign"]
    ports = recorded(killed, server={"optimiser": "sign", "learning_rate": 0.25})
    model = np.zeros(8)
    for round_, found in enumerate(models(ports)):
        if round_:
            model += 0.25 * np.sign(mean(round_))
        assert (found == model).all()
    assert replay(ports, HOME)["equal"]
    rows = [parted.row for parted in what_if(Recording(ports, HOME), "job", Settings())]
    assert {row["distance"] for row in rows} == {0.0}


def test_where_it_is_not_installed_the_replay_says_so(tmp_path: Path) -> None:
    with distribution(tmp_path):
        ports = recorded(server={"optimiser": "sign"})
    with pytest.raises(NoSuchOptimiser, match=r"'sign' is not installed here.*there are fedavg.*install"):
        replay(ports, HOME)
    assert issubclass(NoSuchOptimiser, EXPECTED), "the command line tells it in one line"


def test_a_job_that_names_what_is_not_installed_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        JobRefused, match=r"'sign' is none of fedavg, .*fedyogi; install .*'fedbus\.strategies'"
    ):
        parse_job(spec(server={"optimiser": "sign"}))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("name", "told"), [("lost", "cannot be imported"), ("half", "lacks step")])
def test_one_that_cannot_be_used_is_told_by_name_when_the_job_is_handed_in(name: str, told: str) -> None:
    with pytest.raises(NoSuchOptimiser, match=told):
        server_optimiser(ServerSettings(optimiser=name))

    async def submit() -> None:
        async with federation(HOME, sim_ports()) as fed:
            await fed.command("submit", spec=spec(server={"optimiser": name}))

    with pytest.raises(ExceptionGroup) as refused:
        virtual_loop.run(submit)
    assert refused.group_contains(CommandFailed, match=told)
