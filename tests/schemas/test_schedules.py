"""Learning rates that fall from round to round: by the formulas, and told to devices as plain numbers."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import pack, unpack_plain
from schemas.errors import JobRefused
from schemas.jobs import LocalPlan, LocalSettings, ServerSettings, parse_job
from schemas.schedules import Schedule
from tests.standin import spec


def job(**tables: Any) -> Any:
    return parse_job(spec(**tables))


@given(rounds=st.integers(1, 1000), factor=st.floats(0.01, 1), round_=st.integers(1, 2500))
def test_the_factor_is_that_of_the_formula(rounds: int, factor: float, round_: int) -> None:
    def found(kind: Any) -> float:
        return Schedule(kind=kind, rounds=rounds, factor=factor).of_round(round_)

    done = round_ - 1
    part = min(done / rounds, 1)
    assert found("step") == pytest.approx(max(factor ** (done // rounds), 1e-9), rel=1e-10)
    assert found("linear") == pytest.approx(1 + (factor - 1) * part)
    assert found("cosine") == pytest.approx(factor + (1 - factor) * (1 + math.cos(math.pi * part)) / 2)


@pytest.mark.parametrize("kind", ["step", "linear", "cosine"])
def test_the_first_round_has_all_of_it_and_no_round_has_more(kind: Any) -> None:
    rates = [Schedule(kind=kind, rounds=7, factor=0.1).of_round(round_) for round_ in range(1, 40)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert min(rates) > 0


def test_a_device_is_told_the_rate_of_its_round_and_nothing_of_the_schedule() -> None:
    schedule = {"kind": "step", "rounds": 2, "factor": 0.5}
    plan = job(local={"learning_rate": 0.4, "schedule": schedule, "epochs": 3}).local
    told = [plan.in_round(round_, seed=9) for round_ in (1, 2, 3, 5)]
    assert [settings.learning_rate for settings in told] == [0.4, 0.4, 0.2, 0.1]
    assert {type(settings) for settings in told} == {LocalSettings}
    assert told[0] == LocalSettings(epochs=3, learning_rate=0.4, seed=9)


def test_what_is_not_set_is_not_written() -> None:
    """So jobs and requests are as releases before them wrote and read them."""
    new = {"proximal", "schedule"}
    for settings in (LocalPlan(), LocalSettings(), LocalSettings(proximal=0.0), ServerSettings()):
        assert not new & set(unpack_plain(pack(settings)))
    assert unpack_plain(pack(LocalSettings(proximal=0.5)))["proximal"] == 0.5


def test_the_server_has_the_rate_of_the_version_that_is_made() -> None:
    server = job(
        server={"optimiser": "fedadam", "schedule": {"kind": "step", "rounds": 1, "factor": 0.5}}
    ).server
    assert [server.of_version(version).rate for version in (1, 2, 3)] == [0.1, 0.05, 0.025]
    assert ServerSettings().of_version(3) == ServerSettings()


@pytest.mark.parametrize(
    "wrong", [{"kind": "exp"}, {"rounds": 0}, {"factor": 0.0}, {"factor": 2.0}, {"last": 1}]
)
def test_a_schedule_that_is_none_is_refused_with_its_field(wrong: dict[str, Any]) -> None:
    schedule = {"kind": "step", "rounds": 1, "factor": 0.5} | wrong
    with pytest.raises(JobRefused, match="schedule"):
        job(local={"schedule": schedule})


def test_a_proximal_term_that_leaps_over_its_model_is_refused() -> None:
    with pytest.raises(JobRefused, match=r"proximal 20 times local\.learning_rate 0\.05 is 1"):
        job(local={"proximal": 20.0, "learning_rate": 0.05})
    assert msgspec.to_builtins(job(local={"proximal": 19.0, "learning_rate": 0.05}).local)["proximal"] == 19.0
