"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DIRECTORY = "FEDBUS_COORDINATOR_DIR"

Directory = Annotated[
    Path, typer.Option("--dir", envvar=DIRECTORY, metavar="DIR", help="The coordinator's state directory.")
]
DIRECTORY_DEFAULT = Path("fedbus-coordinator")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
