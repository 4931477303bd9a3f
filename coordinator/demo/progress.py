"""What the demonstration shows while it trains: a live table on a terminal, plain lines otherwise.

All of it goes to standard error; standard output is for the result.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from rich.console import RenderableType

View = dict[str, Any]
BAR_CELLS = 30


class Progress(Protocol):
    """Shows a run; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def tell(self, line: str) -> None:
        """One line for people."""

    def show(self, job: View, rounds: Sequence[View]) -> None:
        """The job as it is now, and its committed rounds (`coordinator.views`)."""


class PlainProgress:
    """A line per event and per round."""

    def __init__(self) -> None:
        self._rounds_told = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def tell(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def show(self, job: View, rounds: Sequence[View]) -> None:
        for done in rounds[self._rounds_told :]:
            self.tell(f"round {done['round']}/{job['rounds']}: {_in_words(done)}")
        self._rounds_told = len(rounds)


class LiveProgress:
    """A table that is drawn anew, with the lines above it."""

    def __init__(self, devices: Sequence[str]) -> None:
        """``devices`` are shown in this order; the last is the slow one."""
        from rich.console import Console
        from rich.live import Live

        self._devices = devices
        self._live = Live(console=Console(stderr=True), refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def tell(self, line: str) -> None:
        self._live.console.print(line, highlight=False)

    def show(self, job: View, rounds: Sequence[View]) -> None:
        self._live.update(self._picture(job, rounds))

    def _picture(self, job: View, rounds: Sequence[View]) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        done = job["rounds_done"]
        cells = round(BAR_CELLS * done / job["rounds"])
        bar = f"[green]{'━' * cells}[/][dim]{'━' * (BAR_CELLS - cells)}[/]"
        requests = job.get("open_round", {}).get("requests", [])
        states = {request["device"]: request["state"] for request in requests}
        table = Table("device", "update", min_width=BAR_CELLS)
        for device in self._devices:
            slow = " [dim](slow)[/]" if device == self._devices[-1] else ""
            table.add_row(device + slow, _coloured(states.get(device, "")))
        last = f"round {rounds[-1]['round']}: {_in_words(rounds[-1])}" if rounds else ""
        return Group(f"round {done}/{job['rounds']}  {bar}", table, last)


def _in_words(done: View) -> str:
    accuracy = done["accuracy_before"]
    before = "" if accuracy is None else f"accuracy before {accuracy:.3f}, "
    return f"{before}{len(done['reports'])} updates, {done['round_s']:.2f} s"


def _coloured(state: str) -> str:
    if not state:
        return "[dim]–[/]"
    colour = {"issued": "dim", "accepted": "yellow", "received": "cyan", "folded": "green"}.get(state, "red")
    return f"[{colour}]{'training' if state == 'accepted' else state}[/]"
