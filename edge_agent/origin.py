"""Are our packages ours? ``broker`` and ``schemas`` are common names. Looked at before they are imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


class Shadowed(Exception):
    """A package of ours would come from elsewhere. The message names where, and the remedy."""


def check_origin() -> None:
    """Raises `Shadowed` unless ``broker`` and ``schemas`` lie beside this package."""
    here = Path(__file__).resolve().parent.parent
    for name in ("broker", "schemas"):
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
        if not places:
            raise Shadowed(f"package {name} is missing beside {here / 'edge_agent'}: install fedbus again")
        found = Path(places[0]).resolve()
        if found != here / name:
            raise Shadowed(
                f"package {name} was found at {found}, not at {here / name}: another package hides ours; "
                f"start from another directory, or clear it from PYTHONPATH (`python -P` leaves the "
                f"working directory out)"
            )
