"""The pytest plugin, in pytest runs of their own."""

from __future__ import annotations

import os

import pytest

from tests.support.servers import descendants

FIXED = """
import pytest
from sandbox_agent import SandboxAgent
from sandbox_agent.testing import ScriptedAgent
"""
SYNC = """
def test_one(sandbox_agent_client_sync, scripted_agent):
    scripted_agent.script("Fixed.")
    turn = sandbox_agent_client_sync.create_session(agent="scripted").stream("Fix it.")
    turn.wait()
    assert turn.text == "Fixed."
    assert scripted_agent.prompts == ["Fix it."]

def test_two(sandbox_agent_client_sync, scripted_agent):
    client = sandbox_agent_client_sync
    assert scripted_agent.prompts == []
    assert client.list_sessions().items == []
    assert client.sessions.list().items == []
    client.sessions.create("left", agent="scripted")
    client.create_session(agent="scripted").prompt("go")

def test_three(sandbox_agent_client_sync, sandbox_agent_server):
    assert sandbox_agent_client_sync.sessions.list().items == []
    print("PID", sandbox_agent_server.url)
"""
ASYNC = """
@pytest.mark.MARK
@pytest.mark.parametrize("number", [1, 2])
async def test_async(sandbox_agent_client, scripted_agent, number):
    assert isinstance(sandbox_agent_client, SandboxAgent)
    assert (await sandbox_agent_client.sessions.list()).items == []
    scripted_agent.script(lambda turn: turn.say(f"Answer {number}."))
    session = await sandbox_agent_client.create_session(agent="scripted")
    turn = session.stream("go")
    await turn
    assert turn.text == f"Answer {number}."
    await sandbox_agent_client.sessions.create("left", agent="scripted")
"""
ANYIO_BACKEND = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(FIXED + source)
    # pytest-asyncio warns without the second one.
    common = ("-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function", "-W", "error")
    return pytester.runpytest_subprocess(*common, *options)


def test_tests_without_async_have_a_client_and_see_nothing_of_each_other(pytester: pytest.Pytester) -> None:
    before = descendants(os.getpid())  # servers that other tests share
    result = run(pytester, SYNC)
    result.assert_outcomes(passed=3)
    assert set(descendants(os.getpid())) <= set(before)


@pytest.mark.parametrize("mark", ["anyio", "asyncio"])
def test_async_tests_have_a_client_in_their_own_loop(pytester: pytest.Pytester, mark: str) -> None:
    run(pytester, ASYNC.replace("MARK", mark) + ANYIO_BACKEND).assert_outcomes(passed=2)


def test_both_kinds_of_async_tests_and_sync_ones_can_be_in_one_run(pytester: pytest.Pytester) -> None:
    both = ASYNC.replace("MARK", "anyio") + ASYNC.replace("MARK", "asyncio").replace(
        "test_async", "test_other"
    )
    run(pytester, both + ANYIO_BACKEND + SYNC).assert_outcomes(passed=7)


def test_asyncio_tests_need_no_mark_in_auto_mode(pytester: pytest.Pytester) -> None:
    source = ASYNC.replace("@pytest.mark.MARK\n", "")
    run(pytester, source, "-o", "asyncio_mode=auto").assert_outcomes(passed=2)


def test_the_client_for_async_tests_says_what_a_sync_test_needs(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_it(sandbox_agent_client): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*use sandbox_agent_client_sync in a test without async*"])


def test_a_failure_shows_what_the_server_logged_in_that_test(pytester: pytest.Pytester) -> None:
    source = """
def test_good(sandbox_agent_client_sync, scripted_agent):
    scripted_agent.script(lambda turn: turn.crash(5))
    with pytest.raises(Exception, match="5"):
        sandbox_agent_client_sync.create_session(agent="scripted").prompt("go")

def test_bad(sandbox_agent_client_sync, scripted_agent):
    scripted_agent.script(lambda turn: turn.crash(6))
    sandbox_agent_client_sync.create_session(agent="scripted").prompt("go")
"""
    result = run(pytester, source)
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    section = text[text.index("Sandbox Agent server log (call)") :]
    assert section.count("agent scripted started") == 1


def test_a_failed_assertion_in_a_script_fails_a_test_whose_app_hides_errors(
    pytester: pytest.Pytester,
) -> None:
    source = """
def script(turn):
    assert turn.prompt == "what was expected"

def test_it(sandbox_agent_client_sync, scripted_agent):
    scripted_agent.script(script)
    try:
        sandbox_agent_client_sync.create_session(agent="scripted").prompt("something else")
    except Exception:
        pass
"""
    result = run(pytester, source)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*assert 'something else' == 'what was expected'*"])


def test_the_scripted_agent_can_take_the_place_of_others(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
import pytest

@pytest.fixture(scope="session")
def sandbox_agent_ids():
    return ["claude", "codex"]
"""
    )
    source = """
def test_it(sandbox_agent_client_sync, scripted_agent):
    for agent in ("claude", "codex"):
        sandbox_agent_client_sync.create_session(agent=agent).prompt(agent)
    assert scripted_agent.prompts == ["claude", "codex"]
"""
    run(pytester, source).assert_outcomes(passed=1)


def test_each_worker_has_a_server_of_its_own(pytester: pytest.Pytester) -> None:
    source = """
@pytest.mark.parametrize("number", range(4))
def test_it(sandbox_agent_client_sync, scripted_agent, number, sandbox_agent_server, testrun_uid):
    sandbox_agent_client_sync.create_session(agent="scripted").prompt("go")
"""
    run(pytester, source, "-n", "2").assert_outcomes(passed=4)


def test_a_run_that_does_not_use_the_plugin_imports_nothing_of_the_sdk(pytester: pytest.Pytester) -> None:
    source = """
import sys

def test_it():
    loaded = {name for name in sys.modules if name.startswith("sandbox_agent")}
    assert loaded <= {
        "sandbox_agent",
        "sandbox_agent.testing",
        "sandbox_agent.testing.plugin",
        "sandbox_agent.testing.plugin_asyncio",
    }
    assert not {"httpx2", "msgspec", "starlette", "uvicorn"} & set(sys.modules)
"""
    pytester.makepyfile(source)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_failing_start_of_the_server_is_an_error_with_its_reason(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
import pytest

@pytest.fixture(scope="session")
def sandbox_agent_ids():
    return ["not an id"]
"""
    )
    result = run(pytester, "def test_it(sandbox_agent_client_sync): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*invalid agent command 'not an id=*"])
