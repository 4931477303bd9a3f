"""What a state directory says about its device; works beside a running agent, which it doesn't disturb."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker.ports import Files
from edge_agent import identity, kept, outbox
from edge_agent.ledger import read_ledger


def describe(files: Files, directory: Path) -> dict[str, Any]:
    """The device's state in plain values. Raises `IdentityError`, `LedgerError`, OSError."""
    own = identity.load(files, directory)
    ledger = read_ledger(files, directory)
    verdict = ledger.verdict
    return {
        "device": own.device,
        "entity": own.entity(),
        "federation": own.federation.hex(),
        "directory": str(directory),
        "member": "revoked" if ledger.revoked else ("active" if own.active else "joined"),
        "revoked": ledger.revoked,
        "running_pid": _running(files, directory),
        "connected": when(ledger.connected_wall_s),
        "requests": [
            {
                "job": record.job,
                "request": record.number,
                "round": record.round,
                "state": record.state.value,
                "reason": record.reason,
                "text": record.text,
            }
            for record in ledger.requests
        ],
        "outbox": files.names(directory / outbox.DIR),
        "models": kept.jobs(files, directory),
        "verdict": None
        if verdict is None
        else {
            "job": verdict.job,
            "request": verdict.request,
            "round": verdict.round,
            "folded": verdict.folded,
            "reason": verdict.reason,
        },
    }


def for_people(state: dict[str, Any]) -> str:
    """The same in words."""
    pid = state["running_pid"]
    lines = [
        f"device      {state['device']} (entity {state['entity']}, {state['member']})",
        f"federation  {state['federation']}",
        f"agent       {f'runs as process {pid}' if pid else 'does not run'}",
        f"connected   {state['connected'] or 'never'}",
        f"outbox      {len(state['outbox'])} updates wait for a receipt",
        f"models      of {len(state['models'])} jobs; `fedbus-agent model list` shows them",
    ]
    if state["revoked"]:
        lines.append(f"revoked     {state['revoked']}")
    if verdict := state["verdict"]:
        word = "folded" if verdict["folded"] else f"rejected: {verdict['reason']}"
        lines.append(f"verdict     job {verdict['job']}, round {verdict['round']}: {word}")
    for record in state["requests"][-10:]:
        why = f" ({record['reason']}: {record['text']})" if record["reason"] else ""
        lines.append(f"request     job {record['job']}, round {record['round']}: {record['state']}{why}")
    return "\n".join(lines)


def when(wall_s: float) -> str:
    """A moment for people and programs; empty for 0."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="seconds") if wall_s else ""


def _running(files: Files, directory: Path) -> int:
    """The process that holds the lock. Asked without taking it, or an agent that starts would fail."""
    try:
        pid = int(files.read(directory / identity.LOCK_FILE) or b"0")
        # Its start is not compared: a process that only got the same number is told apart by its name.
        command = files.read(Path(f"/proc/{pid}/cmdline")) if pid and pid != os.getpid() else b""
    except (OSError, ValueError):
        return 0
    return pid if b"edge_agent" in command else 0
