"""``sandbox-agent agents check`` with an agent of the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.testing.agents import SCENARIOS, Deviation, profile_of
from sandbox_agent.testing.agents.check import FINAL
from sandbox_agent.testing.agents.conversation import ROUTES
from sandbox_agent.testing.agents.profile import known_profiles
from tests.cli.conftest import Shell
from tests.docs.pages import ROOT
from tests.support.servers import put_launcher

PROFILE = """
model = "scripted-model-2"
mode = "plan"
write = { name = "write_file", arguments = { path = "{path}", content = "{text}" } }

[env]
OPENAI_BASE_URL = "{url}/v1"
OPENAI_API_KEY = "scripted-secret-key"

[expected]
thought_level = { outcome = "none", reason = "It has no thought levels.", seen = "no thought_level" }
option = { outcome = "none", reason = "It has no other options.", seen = "no other option" }
mcp_tool = { outcome = "none", reason = "It ignores MCP servers.", seen = "the model received" }
"""
BOLD = "".join(
    f'{name} = {{ outcome = "none", reason = "It never asks.", seen = "no permission was requested" }}\n'
    for name in ("ask", "tool_rejected", "cancel_asking")
)
AGENT = ROOT / "tests/testing/llm_agent.py"


@pytest.fixture
def own_agent(tmp_path: Path) -> Path:
    """The agents `good` and `bold`, with launchers; the file with their profile."""
    for habit in ("good", "bold"):
        put_launcher(tmp_path / "data", habit, [sys.executable, str(AGENT), habit])
    profile = tmp_path / "profile.toml"
    profile.write_text(PROFILE)
    return profile


def results_of(output: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(result["route"], result["scenario"]): result for result in json.loads(output)["results"]}


@pytest.mark.agents
def test_an_agent_passes_all_scenarios_on_both_routes(shell: Shell, own_agent: Path, tmp_path: Path) -> None:
    traffic = tmp_path / "traffic.ndjson"
    done = shell.run("agents", "check", "good", "--profile", own_agent, "--record", traffic, "--json")
    results = results_of(done.stdout)
    assert {key: result for key, result in results.items() if not result["expected"]} == {}
    assert done.returncode == 0
    expected = {(route, name) for name in SCENARIOS for route in ROUTES}
    assert results.keys() == expected | {("server", name) for name in FINAL}
    none = {key[1] for key, result in results.items() if result["outcome"] != "ok"}
    assert none == {"thought_level", "option", "mcp_tool"}
    lines = [json.loads(line) for line in traffic.read_text().splitlines()]
    assert {line["dir"] for line in lines} == {"meta", "c2a", "a2c"}
    methods = {line["msg"].get("method") for line in lines}
    assert {"initialize", "session/new", "session/load", "session/prompt", "session/update"} <= methods
    assert "scripted-secret-key" not in traffic.read_text()


@pytest.mark.agents
def test_what_changed_in_an_agent_fails_the_check_in_both_directions(shell: Shell, own_agent: Path) -> None:
    only = [f"--only={name}" for name in ("text", "ask", "tool_rejected", "kill_in_turn", "log", "processes")]
    done = shell.run("agents", "check", "bold", "--profile", own_agent, *only)
    assert done.returncode == 1
    assert "! ask: no permission was requested, and the file exists" in done.stdout
    assert "! tool_rejected: no permission was requested" in done.stdout
    assert "bold: 4 unexpected results" in done.stdout
    own_agent.write_text(PROFILE + BOLD)
    done = shell.run("agents", "check", "bold", "--profile", own_agent, *only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ask: It never asks." in done.stdout
    assert "bold: no unexpected results" in done.stdout
    rows = {tuple(line.split()) for line in done.stdout.splitlines()}
    assert {
        ("text", "ok", "ok"),
        ("ask", "none", "none"),
        ("kill_in_turn", "ok", "ok"),
        ("log", "ok"),
    } <= rows
    done = shell.run("agents", "check", "good", "--profile", own_agent, *only)
    assert done.returncode == 1
    assert "! ask: this works now, but was expected not to: It never asks." in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mock", "--only", "nothing"], "unknown scenario 'nothing': use text, "),
        (["nobody"], "unsupported agent: nobody"),
        (["amp"], "agent not installed: amp"),
    ],
)
def test_a_wrong_call_is_explained(shell: Shell, words: list[str], message: str) -> None:
    done = shell.run("agents", "check", *words, env={"SANDBOX_AGENT_REQUIRE_PREINSTALL": "1"})
    assert done.returncode not in (0, 1)
    assert message in done.stderr


def test_a_profile_that_is_none_is_refused(shell: Shell, own_agent: Path) -> None:
    own_agent.write_text("modle = 1")
    done = shell.run("agents", "check", "good", "--profile", own_agent)
    assert "is not a profile of an agent: Object contains unknown field `modle`" in done.stderr


@pytest.mark.parametrize("agent", known_profiles())
def test_the_profile_of_an_agent_names_scenarios_that_exist(agent: str) -> None:
    assert CATALOGUE[agent].npm is not None
    for name, deviation in profile_of(agent).expected.items():
        route, _, scenario = name.rpartition(".")
        assert route in ("", "sdk", "sessions", "server")
        assert scenario in (*SCENARIOS, *FINAL)
        assert isinstance(deviation, Deviation)


def test_an_agent_without_a_profile_gets_the_variables_of_all_apis() -> None:
    variables = profile_of("nobody").variables("http://llm", Path("/home"))
    assert variables["OPENAI_BASE_URL"] == "http://llm/v1"
    assert variables["ANTHROPIC_BASE_URL"] == variables["GOOGLE_GEMINI_BASE_URL"] == "http://llm"
