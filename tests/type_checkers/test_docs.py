"""The types of what the README and the docs show: programs strictly, snippets as far as they have types."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Snippet, snippets
from tests.type_checkers.checkers import CHECKERS, check, mypy

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

EXAMPLES = ROOT / "examples"
PYTHON = [each for page in PAGES for each in snippets(page) if each.language == "python"]
PROGRAMS = [each for each in PYTHON if "asyncio.run(" in each.code]
# Snippets build on those above them, as tests/docs runs them. They define functions and names of their own
# without annotations, and use a name again for something else.
RELAXED = (
    "--allow-untyped-defs",
    "--allow-incomplete-defs",
    "--allow-untyped-calls",
    "--allow-redefinition",
    "--local-partial-types",
)
HEAD = """
from sandbox_agent import SandboxAgent, Session

async def _page(sdk: SandboxAgent, session: Session) -> None:
"""


def name_of(snippet: Snippet) -> str:
    return f"{snippet.page.stem}_{snippet.line}".replace("-", "_")


@pytest.mark.parametrize("checker", CHECKERS)
def test_programs_are_strictly_typed(checker: str, tmp_path: Path) -> None:
    assert PROGRAMS
    for snippet in PROGRAMS:
        (tmp_path / f"{name_of(snippet)}.py").write_text(snippet.code)
    assert check(checker, tmp_path) == []


def test_snippets_agree_with_the_types_of_the_package(tmp_path: Path) -> None:
    pages: dict[Path, list[str]] = defaultdict(list)
    for snippet in PYTHON:
        if snippet not in PROGRAMS:
            pages[snippet.page].append(textwrap.indent(snippet.code, "    "))
    for page, code in pages.items():
        (tmp_path / f"page_{page.stem.replace('-', '_')}.py").write_text(HEAD + "\n".join(code))
    assert mypy(tmp_path, *RELAXED) == []


def test_examples_are_strictly_typed(tmp_path: Path) -> None:
    for path in EXAMPLES.rglob("*.py"):
        # The tests of an app import it by its name.
        name = path.name if path.parent.name == "testing" else f"{path.parent.name}_{path.name}"
        (tmp_path / name).write_text(path.read_text())
    assert len([*tmp_path.iterdir()]) > 8
    assert mypy(tmp_path) == []  # pyright checks them with the rest of the repository
