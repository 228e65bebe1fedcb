"""The page of what each agent does says what the profiles expect, of the versions in the catalogue."""

from __future__ import annotations

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.testing.agents import SCENARIOS, profile_of
from sandbox_agent.testing.agents.check import FINAL
from sandbox_agent.testing.agents.conversation import ROUTES
from sandbox_agent.testing.agents.profile import known_profiles
from tests.docs.pages import text_of

HINT = "run make test-agents, then .venv/bin/python scripts/agents_matrix.py"


def table() -> list[list[str]]:
    """Return the cells of the page's first table."""
    text = text_of("docs/agents/matrix.md").partition("\n| scenario |")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in f"scenario |{text}".splitlines()
    ]


def expected_cell(agent: str, scenario: str) -> str:
    routes = ("server",) if scenario in FINAL else ROUTES
    found = [profile_of(agent).deviation(route, scenario) for route in routes]
    outcomes = ["ok" if each is None else each.outcome for each in found]
    return outcomes[0] if len(set(outcomes)) == 1 else " / ".join(outcomes)


def test_the_matrix_is_that_of_the_profiles() -> None:
    head, _, *rows = table()
    agents = [agent for agent in CATALOGUE if agent in known_profiles()]
    packages = {agent: CATALOGUE[agent].package for agent in agents}
    titles = [
        f"{CATALOGUE[agent].title} {package.version if package else ''}"
        for agent, package in packages.items()
    ]
    assert head == ["scenario", *titles], HINT
    expected = [
        [f"`{name}`", *(expected_cell(agent, name) for agent in agents)] for name in (*SCENARIOS, *FINAL)
    ]
    assert rows == expected, HINT


def test_the_page_has_every_reason_and_every_scenario() -> None:
    text = text_of("docs/agents/matrix.md")
    reasons = {each.reason for agent in known_profiles() for each in profile_of(agent).expected.values()}
    assert {reason for reason in reasons if reason not in text} == set(), HINT
    assert [scenario.title for scenario in SCENARIOS.values() if scenario.title not in text] == [], HINT
