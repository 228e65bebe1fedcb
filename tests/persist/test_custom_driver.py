"""The driver that the documentation shows keeps to what all do."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import settings

from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.testing.driver_machine import DriverMachine
from sandbox_agent.testing.drivers import SessionPersistDriverSuite
from tests.docs.pages import ROOT, snippets
from tests.support.effort import repeats

pytestmark = pytest.mark.anyio

# One of them is a program that uses a server, which tests/docs runs.
PYTHON = [
    one
    for one in snippets(ROOT / "docs" / "custom-driver.md")
    if one.language == "python" and "SandboxAgent.connect(" not in one.code
]


def shown() -> dict[str, Any]:
    """Return the names that the page's snippets define."""
    names: dict[str, Any] = {"__name__": "docs"}
    for snippet in PYTHON:
        exec(compile(snippet.code, snippet.name, "exec", dont_inherit=True), names)
    return names


SHOWN = shown()


def make(table: dict[str, Any]) -> SessionPersistDriver:
    return cast("SessionPersistDriver", SHOWN["TableDriver"](table))


def test_the_driver_of_the_page_has_forty_lines_at_most() -> None:
    code = PYTHON[0].code
    assert "class TableDriver(SessionPersistDriver):" in code
    assert len(code.splitlines()) <= 40


def test_the_page_shows_the_suite_and_the_machine() -> None:
    assert issubclass(SHOWN["TestTableDriver"], SessionPersistDriverSuite)
    assert issubclass(SHOWN["TableMachine"], DriverMachine)


class TestDriverOfThePage(SessionPersistDriverSuite):
    @pytest.fixture
    def driver(self) -> SessionPersistDriver:
        return make({})


class PageMachine(DriverMachine):
    def __init__(self) -> None:
        self.table: dict[str, Any] = {}
        super().__init__()

    def make_driver(self) -> SessionPersistDriver:
        return make(self.table)


TestMachineOfThePage = pytest.mark.loops(PageMachine.TestCase)
TestMachineOfThePage.settings = settings(max_examples=repeats(5, 15), stateful_step_count=20, deadline=None)
