"""What survives: the server's end, the agent's death, and the way back."""

from __future__ import annotations

import json
import os
import shlex
import sys
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.engine.restore.history import OPENING
from tests.server.sessions.stack import Stack, running
from tests.support.servers import ServerProcess, descendants, free_port, our_server, put_launcher

pytestmark = pytest.mark.anyio


@pytest.fixture
def keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mock keeps its sessions, so that they can be loaded and resumed."""
    monkeypatch.setenv("SANDBOX_AGENT_MOCK_STATE", str(tmp_path / "mock"))


def put_limited(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an agent "limited": the mock, what it writes edited by sed."""
    mock = f"{shlex.quote(sys.executable)} -m sandbox_agent.agents.mock"
    put_launcher(folder / "data", "limited", ["sh", "-c", f'{mock} | sed -u "{script}"'])
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))


LOADS_ONLY = r"s/,.resume.:{}//"
NEITHER = LOADS_ONLY + r"; s/.loadSession.:true,//"


@asynccontextmanager
async def after_death(folder: Path, agent: str = "mock") -> AsyncGenerator[Stack]:
    """A session whose agent has died in its second turn."""
    async with running(folder) as stack:
        await stack.create(agent=agent, model="mock-fast", agent_mode="plan")
        await stack.over(await stack.say("echo the password is swordfish"))
        dead = await stack.over(await stack.say("die 3"))
        assert dead.state == "failed"
        yield stack


async def prompts_of(stack: Stack) -> list[bytes]:
    live = await stack.recorder.open("s")
    rows = await stack.store.envelopes(live.row.key, after=0, limit=10_000)
    return [row.data for row in rows if b'"session/prompt"' in row.data]


def _http(server: ServerProcess, method: str, path: str, body: Any = None, key: str = "") -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", **({"idempotency-key": key} if key else {})}
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=20) as response:
        text = response.read()
        return json.loads(text) if text else None


def test_a_turn_that_ran_when_the_server_was_killed_is_interrupted_and_the_next_ones_run(
    tmp_path: Path,
) -> None:
    port = free_port()
    with our_server(tmp_path, port=port) as server:
        _http(server, "POST", "/v1/sessions/s", {"agent": "mock"})
        _http(server, "POST", "/v1/sessions/s/messages", {"message": "stall"}, "k0")
        for number in (1, 2):
            _http(server, "POST", "/v1/sessions/s/messages", {"message": f"echo {number}"}, f"k{number}")
        while not _events(server, "turn.started"):
            pass
        before = _events(server)
        server.kill()
    with our_server(tmp_path, port=port) as server:
        while len(_events(server, "turn.ended")) < 3:
            pass
        _http(server, "POST", "/v1/sessions/s/messages", {"message": "stall"}, "k0")
        turns = _http(server, "GET", "/v1/sessions/s")["turns"]
        assert [turn["state"] for turn in turns] == ["interrupted", "done", "done"]
        assert [turn["error"] for turn in turns[:1]] == ["server_restarted"]
        events = _events(server)
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert events[: len(before)] == before


def _events(server: ServerProcess, kind: str = "") -> list[Any]:
    events = _http(server, "GET", "/v1/sessions/s/events?limit=1000")["events"]
    return [event for event in events if event["type"].startswith(kind)]


@pytest.mark.usefixtures("keeps")
async def test_a_session_is_resumed_when_its_agent_is_gone_and_offers_that(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create(agent="mock", model="mock-fast", agent_mode="plan")
        await stack.over(await stack.say("echo the password is swordfish"))
    async with running(tmp_path) as stack:
        native = (await stack.recorder.open("s")).row.native_session_id
        turn = await stack.over(await stack.say("echo back"))
        assert turn.state == "done"
        (restored,) = await stack.statuses("restored")
        assert restored["detail"].startswith("session/resume")
        row = (await stack.recorder.open("s")).row
        assert (row.native_session_id, row.model, row.agent_mode) == (native, "mock-fast", "plan")
        assert OPENING.encode() not in (await prompts_of(stack))[-1]


@pytest.mark.usefixtures("keeps")
async def test_a_session_whose_agent_died_in_a_turn_is_loaded_and_told_what_was_lost(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create(agent="mock", model="mock-fast", agent_mode="plan")
        await stack.over(await stack.say("echo the password is swordfish"))
        kept = {path: path.read_bytes() for path in (tmp_path / "mock").rglob("*") if path.is_file()}
        await stack.over(await stack.say("echo the number is seven"))
        await stack.over(await stack.say("die 3"))
        # As if it had not come to write the end.
        for path, content in kept.items():
            path.write_bytes(content)
        await stack.over(await stack.say("echo back"))
        (restored,) = await stack.values("restored")
        assert (restored["method"], restored["verified"]) == ("session/load", False)
        assert restored["replayed"] > 0
        assert "leftOut" not in restored
        sent = (await prompts_of(stack))[-1]
        assert OPENING.encode() in sent
        assert b"seven" in sent
        assert b"swordfish" not in sent
        assert (await stack.texts("user"))[-1] == "echo back"
        row = (await stack.recorder.open("s")).row
        assert (row.model, row.agent_mode) == ("mock-fast", "plan")


@pytest.mark.usefixtures("keeps")
async def test_a_session_is_loaded_when_its_agent_offers_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_limited(tmp_path, monkeypatch, LOADS_ONLY)
    async with after_death(tmp_path, "limited") as stack:
        await stack.over(await stack.say("echo back"))
        (restored,) = await stack.statuses("restored")
        assert restored["detail"].startswith("session/load")
        # The agent died before it had kept its last answer, which is told to it.
        assert (await stack.values("restored"))[0]["verified"] is False
        # what the agent told again is not in the history twice
        said = await stack.texts("user")
        assert said == ["echo the password is swordfish", "die 3", "echo back"]
        assert (await stack.texts("assistant")).count("the password is swordfish") == 1


async def test_the_history_goes_in_front_of_the_prompt_where_nothing_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_limited(tmp_path, monkeypatch, NEITHER)
    async with after_death(tmp_path, "limited") as stack:
        before = (await stack.recorder.open("s")).row.native_session_id
        turn = await stack.over(await stack.say("echo back"))
        assert turn.state == "done"
        (restored,) = await stack.statuses("restored")
        assert restored["detail"].startswith("replay: ")
        sent = (await prompts_of(stack))[-1]
        assert OPENING.encode() in sent
        assert b"swordfish" in sent
        # the user did not say it, and the turn's record does not have it
        assert (await stack.texts("user"))[-1] == "echo back"
        assert OPENING.encode() not in (await stack.turn(turn)).prompt
        row = (await stack.recorder.open("s")).row
        assert row.native_session_id != before
        assert (row.model, row.agent_mode) == ("mock-fast", "plan")
        # only once
        await stack.over(await stack.say("echo again"))
        assert OPENING.encode() not in (await prompts_of(stack))[-1]
        assert [error["type"] for error in await stack.events() if error["type"] == "error"] == ["error"]


async def test_the_history_is_replayed_where_the_agent_has_forgotten_the_session(tmp_path: Path) -> None:
    async with after_death(tmp_path) as stack:
        await stack.over(await stack.say("echo back"))
        (restored,) = await stack.statuses("restored")
        assert restored["detail"].startswith("replay: ")
        assert b"swordfish" in (await prompts_of(stack))[-1]
        # That it had to be tried is no error of the session's: the death of the agent is the only one.
        assert (await stack.types()).count("error") == 1


HABITS = Path(__file__).parents[2] / "client/loading_agent.py"


@pytest.mark.parametrize("habit", ["fails", "dies", "hangs"])
async def test_the_history_is_replayed_where_the_agents_own_means_fail(
    habit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_launcher(tmp_path / "data", "odd", [sys.executable, str(HABITS), str(tmp_path / "kept"), habit])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    async with running(tmp_path, request_timeout=1.0) as stack:
        await stack.create(agent="odd", model="plan", agent_mode="plan")
        await stack.over(await stack.say("the word is marmalade"))
        await stack.over(await stack.say("die"))
        assert (await stack.over(await stack.say("blocks"))).state == "done"
        (value,) = await stack.values("restored")
        assert value["method"] == "replay"
        assert "verified" not in value
        assert "User: the word is marmalade" in (await stack.texts("assistant"))[-1]
        row = (await stack.recorder.open("s")).row
        assert (row.model, row.agent_mode) == ("plan", "plan")
        assert (await stack.texts("user"))[-1] == "blocks"


@pytest.mark.parametrize(("habit", "verified"), [("plain", True), ("differs", False), ("late", None)])
async def test_a_loaded_session_says_whether_it_is_the_one_that_is_kept(
    habit: str, verified: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_launcher(tmp_path / "data", "odd", [sys.executable, str(HABITS), str(tmp_path / "kept"), habit])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    async with running(tmp_path) as stack:
        await stack.create(agent="odd")
        await stack.over(await stack.say("one"))
    async with running(tmp_path) as stack:
        await stack.over(await stack.say("two"))
        (value,) = await stack.values("restored")
        assert (value["method"], value.get("verified")) == ("session/load", verified)
        assert await stack.texts("user") == ["one", "two"]
        assert await stack.texts("assistant") == ["You said one.", "You said two."]


async def test_an_agent_session_that_has_not_read_its_replay_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_launcher(tmp_path / "data", "odd", [sys.executable, str(HABITS), str(tmp_path / "kept"), "plain"])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    async with running(tmp_path) as stack:
        native = await stack.create(agent="odd")
        await stack.over(await stack.say("the word is marmalade"))
        (tmp_path / "kept" / f"{native}.jsonl").unlink()
    async with running(tmp_path) as stack:
        # Its new session is made, and it ends in the prompt that has the history.
        await stack.over(await stack.say("die"))
    async with running(tmp_path) as stack:
        await stack.over(await stack.say("blocks"))
        assert [value["method"] for value in await stack.values("restored")] == ["replay", "replay"]
        assert "User: the word is marmalade" in (await stack.texts("assistant"))[-1]


async def test_a_replay_that_no_agent_has_read_goes_in_front_of_the_next_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_limited(tmp_path, monkeypatch, NEITHER)
    async with after_death(tmp_path, "limited") as stack:
        await stack.over(await stack.say("die 4"))
        await stack.over(await stack.say("echo back"))
        sent = (await prompts_of(stack))[-1]
        assert sent.count(OPENING.encode()) == 1
        assert b"swordfish" in sent


async def test_a_key_is_known_after_a_restart_of_the_server(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turn = await stack.say("echo once", key="k")
        await stack.over(turn)
    async with running(tmp_path) as stack:
        again = await stack.say("echo once", key="k")
        assert (again.turn_id, again.state) == (turn.turn_id, "done")
        assert await stack.texts("assistant") == ["once"]
        assert stack.bridge.live() == []  # nothing was started for it


@pytest.mark.usefixtures("keeps")
async def test_what_was_accepted_runs_after_a_restart_and_what_ran_is_not_sent_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        stalled = await stack.say("stall")
        later = [await stack.say(f"echo {number}", key=f"k{number}") for number in range(3)]
        await stack.until("turn.started")
    async with running(tmp_path) as stack:
        for turn in later:
            assert (await stack.over(turn)).state == "done"
        interrupted = await stack.turn(stalled)
        assert (interrupted.state, interrupted.error) == ("interrupted", "server_stopped")
        assert "error" not in await stack.types()
        assert await stack.texts("assistant") == ["0", "1", "2"]
        assert sum(b'"stall"' in prompt for prompt in await prompts_of(stack)) == 1
        numbers = [event["sequence"] for event in await stack.events()]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_an_agent_that_can_not_be_started_again_fails_the_turn_and_not_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_limited(tmp_path, monkeypatch, NEITHER)
    launcher = tmp_path / "data/sandbox-agent/bin/agent_processes/limited-acp"
    async with after_death(tmp_path, "limited") as stack:
        launcher.chmod(0o644)
        failed = await stack.over(await stack.say("echo lost"))
        assert failed.state == "failed"
        assert "limited" in (failed.error or "")
        assert (await stack.types())[-2:] == ["error", "turn.ended"]
        launcher.chmod(0o755)
        assert (await stack.over(await stack.say("echo back"))).state == "done"


async def test_a_turn_is_cancelled_before_its_agent_has_started_again(tmp_path: Path) -> None:
    async with after_death(tmp_path) as stack:
        turn, later = await stack.say("echo never"), await stack.say("echo later")
        await stack.sessions.cancel("s")
        assert (await stack.over(turn)).state == "cancelled"
        assert (await stack.over(later)).state == "done"
        assert "never" not in (await stack.texts("assistant"))
        assert not any(b"never" in prompt for prompt in await prompts_of(stack))


async def test_terminate_ends_a_session_whose_agent_is_being_started(tmp_path: Path) -> None:
    async with after_death(tmp_path) as stack:
        turn = await stack.say("echo never")
        await anyio.lowlevel.checkpoint()
        await stack.sessions.terminate("s")
        assert (await stack.turn(turn)).state == "cancelled"
        assert stack.bridge.live() == []
        assert (await stack.types())[-1] == "session.ended"


async def test_no_agent_is_left_when_the_server_ends_in_the_middle_of_everything(tmp_path: Path) -> None:
    pids: set[int] = set()
    with anyio.fail_after(20):
        async with running(tmp_path) as stack:
            for number in range(3):
                await stack.create(f"s{number}")
                await stack.say("stall", f"s{number}")
                await stack.say("echo x", f"s{number}")
                await stack.until("turn.started", f"s{number}")
            pids = {pid for pid in descendants(os.getpid()) if b"mock" in _command(pid)}
    assert len(pids) == 3
    assert not [pid for pid in pids if b"mock" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
