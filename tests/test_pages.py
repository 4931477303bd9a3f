"""The pages: links lead somewhere, and the messages in docs/troubleshooting.md are the programs' own."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from schemas.errors import WireError

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")])
PRODUCT: Final = ("broker", "compressors", "coordinator", "edge_agent", "schemas")
TROUBLES: Final = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CODE: Final = re.compile(r"``\s?(.+?)\s?``|`([^`]+)`")
NOT_OURS: Final = {
    "Denied PUBLISH from press-07@… (…)",  # Mosquitto's log
    "… owner is not mosquitto. Future versions will refuse to load this file",
    "access to topic … refused for user",  # RabbitMQ's
    "use_username_as_clientid true",  # a setting
}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as the usual viewers of Markdown make them."""
    titles = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@cache
def texts() -> str:
    """All that the programs may say: the constant parts of their texts."""
    found = []
    for path in (path for package in PRODUCT for path in (ROOT / package).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        constants = [n for n in nodes if isinstance(n, ast.Constant) and id(n) not in docstrings]
        found += [n.value for n in constants if isinstance(n.value, str)]
    return "\n".join(found)


def symptoms() -> list[str]:
    """The messages in the first column of the page's tables."""
    cells = [line.split(" | ")[0] for line in TROUBLES.splitlines() if line.startswith("| ")]
    spans = [first or second for cell in cells for first, second in CODE.findall(cell)]
    return [span for span in spans if " " in span and span not in NOT_OURS]


@pytest.mark.parametrize("message", symptoms())
def test_a_message_on_the_page_is_one_of_ours(message: str) -> None:
    for part in re.split(r"…|; |: |, ", message):
        assert part.strip() in texts()


def test_the_page_explains_every_code_of_a_dead_letter() -> None:
    section = TROUBLES.split("\n## Messages from elsewhere\n")[1]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    explained = [code for cell in cells for _, code in CODE.findall(cell)]
    assert sorted(explained) == sorted(error.code for error in WireError.__subclasses__())
