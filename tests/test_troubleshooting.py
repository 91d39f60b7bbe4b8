"""Every message that docs/troubleshooting.md explains is still said by the source, in one place."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
OURS = PAGE.split("\n## Not ours")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in OURS.splitlines()
    if line.startswith("| ") and not line.startswith(("| what it says", "| ---"))
]
MESSAGES = [message for first, *_ in ROWS for message in re.findall(r"`([^`]+)`", first) if message != "-"]


@cache
def said() -> dict[str, str]:
    """Of each source file all its texts, a value in an f-string being `…`, one text per line."""
    sources = [path for folder in ("platform", "model", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    found = {}
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = [text(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        spoken = [node for node in ast.walk(tree) if not isinstance(node, ast.Expr)]  # a docstring is no message
        children = [child for node in spoken for child in ast.iter_child_nodes(node)]
        whole += [node.value for node in children if isinstance(node, ast.Constant) and type(node.value) is str]
        found[path.relative_to(ROOT).as_posix()] = "\n".join(whole)
    return found


def text(node: ast.JoinedStr) -> str:
    return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def places(message: str) -> list[str]:
    """The files of which one text says all of a message's fixed parts, in their order."""
    parts = [re.escape(part) for part in re.split(r"\s*…\s*", message) if part]
    pattern = re.compile(r"[^\n]*".join(parts))
    return [name for name, texts in said().items() if pattern.search(texts)]


def test_the_page_has_rows_of_three_cells_each_with_a_message():
    assert len(ROWS) >= 30
    assert [row for row in ROWS if len(row) != 3 or not row[0].startswith("`") or not all(row)] == []


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_still_said(message):
    assert max(map(len, message.split("…"))) >= 8, "too short to be found"
    assert places(message), "reworded? then the page must be, too"


def test_a_message_that_nobody_says_is_found_out():
    assert places("no frame of … has a label: nothing to score")
    assert not places("no frame of … has a label: nothing to see")
    assert not places("has a label … no frame of")
