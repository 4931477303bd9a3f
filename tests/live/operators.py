"""Somebody who types what a page says, on two machines that are folders here.

Commands are the page's own. What needs root, a network or systemd is stood in for: packages, users and
checkouts are there already, ``sudo`` runs the rest as we are, ``scp`` copies, and ``systemctl`` starts what
the installed unit says. Paths, the server's name and its ports are changed, nothing else.
"""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, Self

from broker.worker import with_our_packages

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = Path(sys.executable).parent
PATIENCE_S: Final = 120.0
HEADING: Final = re.compile(r"#+ .*\b[Oo]n (hub|press-07):")
AGAIN: Final = re.compile(
    r"fed (status|devices list|jobs show)|agent (status|model)|alias |sudo systemctl enable"
)
"""Commands that may be typed again until they say what the page promises."""
NOTHING: Final = "#!/bin/sh\nexit 0\n"
STAND_INS: Final = {
    "apt-get": NOTHING,
    "useradd": NOTHING,
    "python3": NOTHING,
    "rabbitmq-plugins": NOTHING,
    "git": f"#!/bin/sh\nln -s {ROOT} fedbus\n",
    # The user fedbus has no home; here not even we can make one there.
    "sudo": '#!/bin/sh\n[ "$1" = -u ] && shift 2 && export HOME=/proc/nonexistent\nexec "$@"\n',
    # Without owner and group.
    "install": """#!/bin/sh
for word; do
    shift
    case $skip$word in
        -o|-g) skip=skip; continue;;
        skip*) skip=; continue;;
    esac
    set -- "$@" "$word"
done
exec /usr/bin/install "$@"
""",
    "scp": '#!/bin/sh\nfor to; do :; done\ncp "$1" "$MACHINES/${to%:}/home/"\n',
}


@dataclass(frozen=True)
class Step:
    """One block, on one machine, and what should be seen then."""

    machine: str
    block: str
    seen: tuple[str, ...]


def steps(page: str) -> list[Step]:
    """The blocks of all sections that name a machine."""
    found: list[Step] = []
    machine = ""
    for part in re.split(r"^(?=#+ )", page, flags=re.MULTILINE):
        named = HEADING.match(part)
        machine = named[1] if named else ""
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```", part, re.MULTILINE | re.DOTALL):
            if machine and language == "sh":
                found.append(Step(machine, text, ()))
            elif machine and language == "text":
                found[-1] = Step(machine, found[-1].block, tuple(text.splitlines()))
    return found


def commands(block: str) -> Iterator[str]:
    """A block's commands, each as it was typed, with its continued lines."""
    typed = ""
    for line in block.splitlines(keepends=True):
        typed += line
        here = re.search(r"<<'(\w+)'", typed)
        open_ = typed.endswith("\\\n") or (typed.startswith("for ") and line != "done\n")
        if not open_ and (here is None or line.strip() == here[1]):
            yield typed
            typed = ""
    assert not typed, f"a command without its end: {typed}"


class Broker(Protocol):
    """The system's broker, as `systemctl` knows it."""

    def restart(self) -> None: ...

    def reload(self) -> None: ...


class PathUnit:
    """A path unit and its service, which tells the broker, as systemd runs them: it watches, and while its
    service runs it is blind. ``change`` is for the paths in both."""

    def __init__(self, unit: Path, reload: Callable[[], None], change: Callable[[str], str]) -> None:
        self._watched = re.findall(r"^Path(Exists|Changed)=(.*)$", change(unit.read_text()), re.MULTILINE)
        service = change(unit.with_suffix(".service").read_text())
        steps = re.findall(r"^ExecStart(Pre|Post|)=(.*)$", service, re.MULTILINE)
        self._steps = [line for _, line in sorted(steps, key=lambda step: ["Pre", "", "Post"].index(step[0]))]
        self._reload = reload
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=unit.name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)

    def _watch(self) -> None:
        seen = self._look()
        while not self._over.wait(0.02):
            exists = any(kind == "Exists" and Path(path).exists() for kind, path in self._watched)
            if exists or seen != self._look():
                for line in self._steps:
                    self._step(line)
                seen = self._look()

    def _step(self, line: str) -> None:
        if "mosquitto.service" in line:
            self._reload()
        else:
            subprocess.run(shlex.split(line), check=True, timeout=PATIENCE_S)

    def _look(self) -> list[tuple[int, int]]:
        """What `PathChanged` would notice while it looks."""
        found = [Path(path).stat() for kind, path in self._watched if kind == "Changed"]
        return [(file.st_ino, file.st_mtime_ns) for file in found]


class Machines:
    """``hub`` and ``press-07`` under ``base``. ``local`` says what stands for which text of the page;
    ``broker`` is a unit's name, and what runs as it. Leaving the context ends every other service."""

    def __init__(self, base: Path, local: Mapping[str, str], broker: tuple[str, Broker]) -> None:
        self.base = base
        self._local = local
        self._unit, self._broker = broker
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self._at: dict[str, Path] = {}
        self._aliases: dict[str, str] = {}
        self._watching = ExitStack()
        self._enabled: set[str] = set()

    def __enter__(self) -> Self:
        for name, text in STAND_INS.items():
            self.stand_in(name, text)
        for machine in ("hub", "press-07"):
            self._at[machine] = self.base / machine / "home"
            for folder in ("home", "srv", "etc/systemd/system", "etc/mosquitto/conf.d", "var/lib"):
                (self.base / machine / folder).mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()
        for name in list(self._services):
            self._stop(name)

    def stand_in(self, name: str, text: str) -> None:
        """A program that is found before the system's own."""
        path = self.base / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def type(self, step: Step) -> None:
        """Type a step's block, and see what the page promises; what only looks is typed again until then."""
        end_s = time.monotonic() + PATIENCE_S
        typed = list(commands(step.block))
        while True:
            output = "".join(self._type(step.machine, command) for command in typed)
            missing = [line for line in step.seen if not self._shown(step.machine, line, output)]
            if not missing:
                return
            again = all(AGAIN.match(command) for command in typed) and time.monotonic() < end_s
            assert again, f"not seen: {missing} after {step.block} but {output}\n{self._logs()}"
            time.sleep(0.2)

    def _shown(self, machine: str, line: str, output: str) -> bool:
        words = self._changed(machine, line).split()
        pattern = r"\s+".join(".*".join(map(re.escape, word.split("…"))) for word in words)
        return any(re.fullmatch(pattern, shown.strip()) for shown in output.splitlines())

    def _changed(self, machine: str, text: str) -> str:
        text = text.replace("/opt/fedbus/bin/pip", "true").replace("/opt/fedbus/bin/", f"{PROGRAMS}/")
        for folder in ("/etc/mosquitto/", "/etc/rabbitmq/", "/etc/systemd/", "/var/lib/", "/srv/"):
            text = re.sub(rf"(?<![\w-]){folder}", f"{self.base / machine}{folder}", text)
        for said, meant in self._local.items():
            text = text.replace(said, meant)
        return text

    def _type(self, machine: str, command: str) -> str:
        if command.startswith("alias "):
            self._aliases[machine] = self._changed(machine, command)
        words = command.split()
        if words[:2] == ["sudo", "systemctl"]:
            output = "".join(self._systemctl(machine, words[2], name) for name in words[3:] if name[0] != "-")
        else:
            output = self._run(machine, self._changed(machine, command))
        return output

    def _run(self, machine: str, command: str) -> str:
        where = self.base / f"{machine}.pwd"
        script = f"{self._aliases.get(machine, '')}{command}pwd > {where}\n"
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=self._at[machine],
            env=self._environment(machine),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"on {machine}: {command}: {done.stdout}\n{self._logs()}"
        self._at[machine] = Path(where.read_text().strip())
        return done.stdout

    def _environment(self, machine: str) -> dict[str, str]:
        home = self.base / machine / "home"
        path = f"{self.base / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        plain = {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "MACHINES": str(self.base)}
        return with_our_packages(plain)

    def _systemctl(self, machine: str, verb: str, name: str) -> str:
        if name == self._unit:
            self._broker.restart() if verb == "restart" else self._broker.reload()
        elif name.endswith(".path"):
            if name in self._enabled:
                return ""
            self._enabled.add(name)
            unit = self.base / machine / "etc/systemd/system" / name
            text = partial(self._changed, machine)
            self._watching.enter_context(PathUnit(unit, self._broker.reload, text))
        else:
            if verb in ("restart", "stop"):
                self._stop(name)
            if verb != "stop" and name not in self._services:
                self._start(machine, name)
        return ""

    def _start(self, machine: str, name: str) -> None:
        unit = (self.base / machine / "etc/systemd/system" / f"{name}.service").read_text()
        (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        line = self._changed(machine, line.replace("%S", "/var/lib").replace("%i", ""))
        address = self.base / "ready"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news,
            (self.base / f"{name}.log").open("ab") as log,
        ):
            news.settimeout(PATIENCE_S)
            news.bind(str(address))
            self._services[name] = subprocess.Popen(
                shlex.split(line),
                env={**self._environment(machine), "NOTIFY_SOCKET": str(address)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                assert news.recv(100) == b"READY=1"
            except TimeoutError as error:
                raise AssertionError(f"{name} is not ready\n{self._logs()}") from error
        address.unlink()

    def _stop(self, name: str) -> None:
        service = self._services.pop(name)
        service.terminate()
        service.wait(PATIENCE_S)

    def _logs(self) -> str:
        logs = [path for path in self.base.glob("*.log") if path.stat().st_size]
        return "\n".join(f"{path}: {path.read_text()[-2_000:]}" for path in logs)
