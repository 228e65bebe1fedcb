"""The table of waits names a test for each of them."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT, text_of

ROWS = [
    line
    for line in text_of("docs/timeouts.md").splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| who waits |"))
]


@pytest.mark.parametrize("row", ROWS)
def test_a_wait_names_a_test_that_exists(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert len(cells) == 4
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(?:\w+::)?(test_\w+)`", cells[3])
    assert named is not None, cells[3]
    tree = ast.parse((ROOT / named[1]).read_text(encoding="utf-8"))
    functions = {
        each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert named[2] in functions


def test_the_table_is_read() -> None:
    assert len(ROWS) > 50
