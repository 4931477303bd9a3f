"""What the linters cannot say: sizes, docstrings, the bans that hold in tests too, contracts kept complete.

A rule is a function from a parsed module to the places that break it. What breaks a rule for a good reason
stands in `EXCEPTIONS`; an entry that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("broker", "compressors", "coordinator", "edge_agent", "schemas")
FILE_LINES_MAX = 300
FUNCTION_LINES_MAX = 50

# (rule, place) -> why. A place is "path" or "path:Qualified.name".
EXCEPTIONS: dict[tuple[str, str], str] = {}

# Also banned where ruff's TID251 is off: in tests and in broker/system.py.
BANNED_EVERYWHERE = {
    "asyncio.create_task": "use TaskGroup.create_task",
    "asyncio.ensure_future": "use TaskGroup.create_task",
    "asyncio.gather": "use asyncio.TaskGroup",
    "cloudpickle": "it runs code; use msgpack",
    "dill": "it runs code; use msgpack",
    "pickle": "it runs code; use msgpack",
    "time.time": "it jumps; use a monotonic clock",
}

# import-linter refuses names of modules that don't exist, so pyproject.toml lists the ones that do.
CONTRACT_SOURCES = {
    "the pure modules of the coordinator": [
        "coordinator.core",
        "coordinator.state",
        "coordinator.agreement",
        "coordinator.apply",
        "coordinator.rounds",
        "coordinator.cohort",
        "coordinator.registry",
        "coordinator.enrolment",
        "coordinator.evaluation",
        "coordinator.progress",
        "coordinator.spread",
        "coordinator.negotiation",
        "coordinator.quarantine",
        "coordinator.receipts",
        "coordinator.scheduler",
        "coordinator.strategies",
        "coordinator.privacy",
    ],
    "the resident agent": ["edge_agent.__main__", "edge_agent.app"],
}

# Homes of people and of build machines. Written so that this file doesn't find itself.
MACHINE_PATH = re.compile(r"(?<![\w./>~}-])/(?:root|work|Users|home/\w+)/[\w.-]")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A parsed source file; ``path`` is relative to the root of the repository."""

    path: str
    text: str
    protocol_methods: frozenset[str] = frozenset()

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def is_product(self) -> bool:
        return self.path.startswith(PRODUCT)


def definitions(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef, ast.ClassDef | None]]:
    """Every function and class that isn't local to a function: qualified name, node, enclosing class."""

    def walk(
        body: list[ast.stmt], prefix: str, owner: ast.ClassDef | None
    ) -> Iterator[tuple[str, Function | ast.ClassDef, ast.ClassDef | None]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + node.name, node, owner
            elif isinstance(node, ast.ClassDef):
                yield prefix + node.name, node, owner
                yield from walk(node.body, f"{prefix}{node.name}.", node)

    return walk(tree.body, "", None)


def is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split("[")[0].endswith("Protocol") for base in node.bases)


def long_files(module: Module) -> Iterator[str]:
    if len(module.text.splitlines()) > FILE_LINES_MAX:
        yield module.path


def long_functions(module: Module) -> Iterator[str]:
    """From ``def`` to the last line; decorators and the docstring don't count, inner functions do."""
    for name, node, _ in definitions(module.tree):
        if isinstance(node, ast.ClassDef) or node.end_lineno is None:
            continue
        lines = node.end_lineno - node.lineno + 1
        first = node.body[0]
        if ast.get_docstring(node) is not None and first.end_lineno is not None:
            lines -= first.end_lineno - first.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield f"{module.path}:{name}"


def undocumented(module: Module) -> Iterator[str]:
    """Public names of the product without a docstring.

    Excepted: what a Protocol of ours declares (stubs and their implementations: the Protocol speaks for
    them), a Protocol that speaks through its methods, methods of a single statement, `typing.override`.
    """
    if not module.is_product:
        return
    if ast.get_docstring(module.tree) is None:
        yield module.path
    for name, node, owner in definitions(module.tree):
        if any(part.startswith("_") for part in name.split(".")) or ast.get_docstring(node) is not None:
            continue
        if isinstance(node, ast.ClassDef):
            documented = any(isinstance(n, Function) and ast.get_docstring(n) is not None for n in node.body)
            if is_protocol(node) and documented:
                continue
        else:
            decorators = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
            if decorators & {"override", "overload", "setter", "deleter"}:
                continue
            if owner is not None and (node.name in module.protocol_methods or len(node.body) == 1):
                continue
        yield f"{module.path}:{name}"


def banned_names(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            if name in BANNED_EVERYWHERE or name.split(".")[0] in BANNED_EVERYWHERE:
                yield f"{module.path}:{name} ({BANNED_EVERYWHERE.get(name, 'banned')})"


def direct_writes(module: Module) -> Iterator[str]:
    """Files written past the Files port, or simulation and crash tests would not see them."""
    if not module.is_product or module.path == "broker/system.py":
        return
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if name in {"write_text", "write_bytes"} or (name == "open" and _opens_for_writing(node)):
            yield f"{module.path}:{name}, line {node.lineno}"


def _opens_for_writing(call: ast.Call) -> bool:
    args = call.args[1:] if isinstance(call.func, ast.Name) else call.args
    values = [*args, *(k.value for k in call.keywords if k.arg == "mode")]
    modes = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    return any(re.fullmatch(r"[rbtwax+]{1,3}", mode) and set(mode) & set("wax+") for mode in modes)


RULES: dict[str, Callable[[Module], Iterator[str]]] = {
    f"files of at most {FILE_LINES_MAX} lines": long_files,
    f"functions of at most {FUNCTION_LINES_MAX} lines": long_functions,
    "public names have docstrings": undocumented,
    "names banned everywhere": banned_names,
    "files are written through the Files port": direct_writes,
}


def modules() -> list[Module]:
    """All source files of the product and its tests."""
    paths = [path for folder in (*PRODUCT, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    declared = {
        item.name
        for path, text in texts.items()
        if path.startswith(PRODUCT)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and is_protocol(node)
        for item in node.body
        if isinstance(item, Function)
    }
    return [Module(path, text, frozenset(declared)) for path, text in texts.items()]


@pytest.mark.parametrize("rule", RULES)
def test_the_tree_keeps_the_rule(rule: str) -> None:
    found = {place for module in modules() for place in RULES[rule](module)}
    excepted = {place for name, place in EXCEPTIONS if name == rule}
    assert sorted(found - excepted) == [], f"broken: {rule}"
    assert sorted(excepted - found) == [], "exceptions no longer needed"


LONG_FUNCTION = "def f() -> None:\n" + "    g()\n" * FUNCTION_LINES_MAX


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (long_files, "x = 1\n" * (FILE_LINES_MAX + 1)),
        (long_functions, LONG_FUNCTION),
        (long_functions, "class A:\n" + "".join("    " + line + "\n" for line in LONG_FUNCTION.splitlines())),
        (undocumented, "x = 1\n"),
        (undocumented, '"""Doc."""\ndef public(): ...\n'),
        (
            undocumented,
            '"""Doc."""\nclass A:\n    """Doc."""\n    def public(self):\n        f()\n        g()\n',
        ),
        (banned_names, "import pickle\n"),
        (banned_names, "from asyncio import gather\n"),
        (banned_names, "import time\nnow = time.time()\n"),
        (direct_writes, "open('journal', 'ab')\n"),
        (direct_writes, "path.open(mode='w')\n"),
        (direct_writes, "path.write_bytes(b'')\n"),
    ],
)
def test_a_rule_finds_what_breaks_it(rule: Callable[[Module], Iterator[str]], text: str) -> None:
    assert list(rule(Module("broker/example.py", text))) != []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            long_functions,
            'def f() -> None:\n    """One.\n' + "\n" * FUNCTION_LINES_MAX + '    """\n    g()\n',
        ),
        (undocumented, '"""Doc."""\ndef _private(): ...\nclass _Inner:\n    def f(self): ...\n'),
        (
            undocumented,
            '"""Doc."""\nclass A:\n    """Doc."""\n    def declared(self):\n        f()\n        g()\n',
        ),
        (direct_writes, "open('w')\npath.open('rb')\nfiles.open(path, create=True)\n"),
    ],
)
def test_a_rule_leaves_alone_what_keeps_it(rule: Callable[[Module], Iterator[str]], text: str) -> None:
    assert list(rule(Module("broker/example.py", text, frozenset({"declared"})))) == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    skipped = {".git", ".venv", "build", "dist", "fedbus-demo", "__pycache__", ".hypothesis"}
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or any(p in skipped or p.endswith(("_cache", ".egg-info")) for p in parts):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


def test_the_pattern_for_machine_paths_knows_one_when_it_sees_it() -> None:
    assert MACHINE_PATH.search("state_dir = '" + "/" + "root/state'")
    assert MACHINE_PATH.search("see " + "/" + "home/ann/notes")
    assert not MACHINE_PATH.search("fedbus/1/root/press-07 and https://example.org/home/ann/x")


def existing(names: list[str]) -> list[str]:
    stems = {name: ROOT / name.replace(".", "/") for name in names}
    return [name for name, stem in stems.items() if stem.with_suffix(".py").exists() or stem.is_dir()]


@pytest.mark.parametrize("contract", CONTRACT_SOURCES)
def test_an_import_contract_covers_every_module_it_is_about(contract: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    listed = [name for c in contracts if c["name"].startswith(contract) for name in c["source_modules"]]
    assert sorted(listed) == sorted(existing(CONTRACT_SOURCES[contract])), "keep pyproject.toml in step"


@pytest.mark.parametrize("module", existing(CONTRACT_SOURCES["the resident agent"]))
def test_the_resident_agent_loads_no_heavy_library(module: str) -> None:
    script = f"import {module}, sys; print(*{{'numpy', 'rich', 'torch', 'typer'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []
