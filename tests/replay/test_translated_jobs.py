"""An export tells of a job's layers in other words, and of its other settings as they are."""

from __future__ import annotations

from typing import Any, cast

from coordinator.rekey.names import Names
from coordinator.rekey.translate import Translator
from schemas.jobs import parse_job
from tests.standin import spec


def test_names_of_layers_are_not_told_and_what_is_not_set_stays_unset() -> None:
    nothing = cast("Any", None)
    to = Translator(Names(), nothing, (nothing, nothing), (nothing, nothing))
    told = to.struct(parse_job(spec(personal={"layers": ["secret.*"]}, scaffold={"devices": 3})))
    assert told.personal
    assert told.personal.layers == ["layer-1"]
    assert told.population == 3
    plain = to.struct(parse_job(spec()))
    assert not plain.personal
    assert not plain.scaffold
