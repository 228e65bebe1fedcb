"""``POST /v1/agents/{agent}/install`` and first use, with an npm that needs no network."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx2
import pytest

from sandbox_agent import InstallFailedError, SandboxAgent
from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.client import opened
from tests.agents.install.fake_npm import FakeNpm
from tests.interop.leftovers import Leftovers
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}}
SECONDS = 60.0


@pytest.fixture
def npm(tmp_path: Path) -> FakeNpm:
    """Our node and npm, in a folder for the server's PATH."""
    folder = tmp_path / "fake-npm"
    folder.mkdir()
    return FakeNpm(folder)


@pytest.fixture
def leftovers() -> Leftovers:
    return Leftovers()


def serving(tmp_path: Path, npm: FakeNpm, leftovers: Leftovers, *options: str, **env: str) -> ServerProcess:
    path = f"{npm.folder}:{os.defpath}"
    variables = {"PATH": path, "SANDBOX_AGENT_REQUIRE_PREINSTALL": "", **leftovers.env, **env}
    return our_server(tmp_path, *options, env=variables)


@pytest.fixture
def server(tmp_path: Path, npm: FakeNpm, leftovers: Leftovers) -> Generator[ServerProcess]:
    """A server that may install agents."""
    with serving(tmp_path, npm, leftovers) as running:
        yield running
    assert not leftovers.find(), "processes outlived the server"


@asynccontextmanager
async def client(server: ServerProcess) -> AsyncGenerator[httpx2.AsyncClient]:
    with anyio.fail_after(SECONDS):
        async with httpx2.AsyncClient(base_url=server.url, timeout=SECONDS) as http:
            yield http


def installed(server: ServerProcess) -> dict[str, Any]:
    return httpx2.get(f"{server.url}/v1/agents/codex").json()


def hang(npm: FakeNpm, tmp_path: Path) -> Path:
    fifo = tmp_path / "hang"
    os.mkfifo(fifo)
    npm.behave(hang=str(fifo))
    return fifo


async def test_an_agent_is_installed_once_and_again_when_that_is_asked(
    server: ServerProcess, npm: FakeNpm, tmp_path: Path
) -> None:
    assert "version" not in installed(server)
    async with client(server) as http:
        answer = await http.post("/v1/agents/codex/install", json={})
        launcher = str(tmp_path / "data/sandbox-agent/bin/agent_processes/codex-acp")
        artifact = {"kind": "agent_process", "path": launcher, "source": "npm", "version": "2.6.0"}
        assert (answer.status_code, answer.json()) == (
            200,
            {"already_installed": False, "artifacts": [artifact]},
        )
        answer = await http.post("/v1/agents/codex/install", json={})
        assert answer.json() == {"already_installed": True, "artifacts": [artifact]}
        answer = await http.post("/v1/agents/codex/install", json={"reinstall": True})
        assert not answer.json()["already_installed"]
        answer = await http.post("/v1/agents/codex/install", json={"agentProcessVersion": "2.5.0"})
        assert answer.json()["artifacts"][0]["version"] == "2.5.0"
    info = installed(server)
    assert (info["version"], info["package"], info["pinnedVersion"]) == (
        "9.9.9",
        "@agentclientprotocol/codex-acp",
        "2.6.0",
    )
    assert len(npm.calls) == 3


async def test_the_options_of_a_newly_installed_agent_are_asked_again(
    server: ServerProcess, npm: FakeNpm
) -> None:
    async with client(server) as http:
        await http.post("/v1/agents/codex/install", json={})
        first = (await http.get("/v1/agents/codex?config=true")).json()
        option: dict[str, Any] = {
            "id": "own",
            "name": "Own",
            "category": "model",
            "type": "select",
            "options": [],
        }
        npm.behave(version="10.0.0", options=[option])
        await http.post("/v1/agents/codex/install", json={"reinstall": True})
        second = (await http.get("/v1/agents/codex?config=true")).json()
    assert (first["version"], second["version"]) == ("9.9.9", "10.0.0")
    # An agent that reports none has those of the catalogue.
    assert first["configOptions"] == CATALOGUE["codex"].config_options
    assert second["configOptions"] == [option]


@pytest.mark.parametrize(
    ("agent", "body", "status", "name"),
    [
        ("bogus", {}, 400, "unsupported_agent"),
        ("cursor", {}, 400, "invalid_request"),
        ("codex", {"agentVersion": "1.0.0"}, 400, "invalid_request"),
        ("codex", {"agentProcessVersion": "file:/etc"}, 400, "invalid_request"),
        ("codex", {"reinstall": "yes"}, 400, "invalid_request"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_what_cannot_be_installed_is_a_problem(
    server: ServerProcess, npm: FakeNpm, agent: str, body: dict[str, Any], status: int, name: str, accept: str
) -> None:
    async with client(server) as http:
        answer = await http.post(f"/v1/agents/{agent}/install", json=body, headers={"accept": accept})
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:sandbox-agent:error:{name}")
    assert npm.calls == []


async def test_a_failure_has_npms_reason(server: ServerProcess, npm: FakeNpm) -> None:
    npm.behave(fail="npm error code ENOSPC")
    async with client(server) as http:
        answer = await http.post("/v1/agents/codex/install", json={})
        stream = await http.post("/v1/agents/codex/install", json={}, headers={"accept": "text/event-stream"})
    assert answer.status_code == 500
    assert answer.json() == {
        "type": "urn:sandbox-agent:error:install_failed",
        "title": "Install Failed",
        "status": 500,
        "detail": "install failed: npm ci ended with 1: code ENOSPC",
        "agent": "codex",
        "requestId": answer.headers["x-request-id"],
    }
    event, data = events(stream.text)[-1]
    problem = {**answer.json(), "requestId": stream.headers["x-request-id"]}
    assert (event, json.loads(data)) == ("error", problem)
    assert not installed(server)["installed"]


def events(text: str) -> list[tuple[str, str]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event: ")]
    return [(event.removeprefix("event: "), data.removeprefix("data: ")) for event, data in blocks]


async def test_an_installation_is_followed_as_a_stream(server: ServerProcess, npm: FakeNpm) -> None:
    async with client(server) as http:
        answer = await http.post("/v1/agents/codex/install", json={}, headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"] == "text/event-stream"
    seen = events(answer.text)
    assert [event for event, _ in seen if event != "progress"] == ["log", "done"]
    phases = [json.loads(data)["phase"] for event, data in seen if event == "progress"]
    assert phases[0] == "installing"
    assert phases[-2:] == ["starting", "installed"]
    assert {"phase": "installing", "done": 25, "total": 25} in [json.loads(data) for _, data in seen]
    assert json.loads(seen[-1][1])["artifacts"][0]["version"] == "2.6.0"


async def test_the_first_use_installs_the_agent_once_for_all_that_wait(
    server: ServerProcess, npm: FakeNpm, tmp_path: Path
) -> None:
    fifo = hang(npm, tmp_path)
    answers: dict[str, httpx2.Response] = {}

    async def post(http: httpx2.AsyncClient, server_id: str) -> None:
        prefer = {"prefer": "respond-async"} if server_id == "async" else {}
        answers[server_id] = await http.post(
            f"/v1/acp/{server_id}?agent=codex", json=INITIALIZE, headers=prefer
        )

    async with client(server) as http, anyio.create_task_group() as tasks:
        for server_id in ("one", "two", "async"):
            tasks.start_soon(post, http, server_id)
        await anyio.to_thread.run_sync(fifo.read_text)
        # DELETE does not wait for the installation.
        assert (await http.delete("/v1/acp/one")).status_code == 204
        assert answers == {}
        await anyio.to_thread.run_sync(fifo.write_text, "")
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "one": 200,
        "two": 200,
        "async": 202,
    }
    assert answers["two"].json()["result"]["agentInfo"]["version"] == "9.9.9"
    assert len(npm.calls) == 1


async def test_a_client_that_leaves_does_not_stop_the_installation(
    server: ServerProcess, npm: FakeNpm, tmp_path: Path
) -> None:
    fifo = hang(npm, tmp_path)
    async with client(server) as http:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: http.post("/v1/acp/one?agent=codex", json=INITIALIZE))
            await anyio.to_thread.run_sync(fifo.read_text)
            tasks.cancel_scope.cancel()
        assert not installed(server)["installed"]
        async with anyio.create_task_group() as tasks:

            async def second() -> None:
                assert (await http.post("/v1/acp/two?agent=codex", json=INITIALIZE)).status_code == 200

            tasks.start_soon(second)
            await anyio.to_thread.run_sync(fifo.write_text, "")
    assert len(npm.calls) == 1


async def test_a_stream_that_its_client_leaves_does_not_stop_the_installation(
    server: ServerProcess, npm: FakeNpm, tmp_path: Path
) -> None:
    fifo = hang(npm, tmp_path)
    accept = {"accept": "text/event-stream"}
    answers: list[httpx2.Response] = []
    async with client(server) as http:
        async with http.stream("POST", "/v1/agents/codex/install", json={}, headers=accept) as stream:
            async for line in stream.aiter_lines():
                if line == "event: progress":
                    break
        await anyio.to_thread.run_sync(fifo.read_text)
        async with anyio.create_task_group() as tasks:

            async def second() -> None:
                answers.append(await http.post("/v1/agents/codex/install", json={}))

            tasks.start_soon(second)
            await anyio.to_thread.run_sync(fifo.write_text, "")
    assert [answer.status_code for answer in answers] == [200]
    assert len(npm.calls) == 1


async def test_a_session_of_the_server_installs_its_agent(server: ServerProcess, npm: FakeNpm) -> None:
    async with client(server) as http:
        answer = await http.post("/v1/sessions/one", json={"agent": "codex"})
        assert answer.status_code == 200, answer.text
        assert (await http.get("/v1/sessions/one")).json()["agent"] == "codex"


async def following(http: httpx2.AsyncClient, session_id: str) -> AsyncGenerator[dict[str, Any]]:
    """Yield a session's events, from its creation on."""
    path = f"/v1/sessions/{session_id}/events/sse"
    while (await http.get(f"/v1/sessions/{session_id}")).status_code == 404:
        await anyio.lowlevel.checkpoint()
    async with http.stream("GET", path) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


async def test_a_session_shows_the_installation_of_its_agent_while_it_runs(
    server: ServerProcess, npm: FakeNpm, tmp_path: Path
) -> None:
    fifo = hang(npm, tmp_path)
    answers: list[httpx2.Response] = []
    seen: list[dict[str, Any]] = []

    async def create(http: httpx2.AsyncClient) -> None:
        answers.append(await http.post("/v1/sessions/one", json={"agent": "codex"}))

    async with client(server) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(create, http)
        await anyio.to_thread.run_sync(fifo.read_text)
        async for event in following(http, "one"):
            for part in event["data"].get("item", {}).get("content", []):
                if part.get("label") == "agent.install" and part.get("detail"):
                    seen.append(event)
            if len(seen) == 1:
                break
        assert answers == []  # npm waits
        assert (await http.post("/v1/sessions/one/messages", json={"message": "x"})).status_code == 409
        await anyio.to_thread.run_sync(fifo.write_text, "")
    assert answers[0].status_code == 200
    async with client(server) as http:
        events = (await http.get("/v1/sessions/one/events")).json()["events"]
    shown = [
        part["json"]
        for event in events
        for part in event["data"].get("item", {}).get("content", [])
        if event["type"] == "item.completed" and part.get("type") == "json" and "phase" in part["json"]
    ]
    assert events[0]["type"] == "session.started"
    assert {each["agent"] for each in shown} == {"codex"}
    assert [each["phase"] for each in shown][-2:] == ["starting", "installed"]
    assert {"agent": "codex", "phase": "installing", "done": 25, "total": 25, "percent": 100} in shown
    assert len(shown) <= 14  # a phase, or a tenth
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))


async def test_a_session_whose_agent_cannot_be_installed_ends_with_npms_output(
    server: ServerProcess, npm: FakeNpm
) -> None:
    npm.behave(fail="npm error code ENOSPC")
    async with client(server) as http:
        answer = await http.post("/v1/sessions/one", json={"agent": "codex"})
        assert answer.json()["type"] == "urn:sandbox-agent:error:install_failed"
        events = (await http.get("/v1/sessions/one/events")).json()["events"]
        error, ended = events[-2:]
        assert (error["type"], error["data"]["code"]) == ("error", "install_failed")
        assert error["data"]["message"] == "install failed: npm ci ended with 1: code ENOSPC"
        assert "npm error code ENOSPC" in error["data"]["details"]["output"]
        assert (ended["type"], ended["data"]["reason"]) == ("session.ended", "error")
        assert (await http.post("/v1/sessions/one/messages", json={"message": "x"})).status_code == 409
        npm.behave()
        assert (await http.post("/v1/sessions/one", json={"agent": "codex"})).status_code == 200
        again = (await http.get("/v1/sessions/one/events")).json()["events"]
        assert "session.ended" not in [event["type"] for event in again]


async def test_a_session_that_was_being_installed_when_the_server_was_killed_is_created_again(
    tmp_path: Path, npm: FakeNpm, leftovers: Leftovers
) -> None:
    fifo = hang(npm, tmp_path)
    with serving(tmp_path, npm, leftovers) as server:
        async with client(server) as http, anyio.create_task_group() as tasks:

            async def create() -> None:
                with pytest.raises(httpx2.TransportError):
                    await http.post("/v1/sessions/one", json={"agent": "codex"})

            tasks.start_soon(create)
            await anyio.to_thread.run_sync(fifo.read_text)
            await anyio.to_thread.run_sync(server.kill)
        await leftovers.gone()
        npm.behave()
        await anyio.to_thread.run_sync(server.start)
        async with client(server) as http:
            answer = await http.post("/v1/sessions/one", json={"agent": "codex"})
            assert (answer.status_code, answer.json()["nativeSessionId"]) == (200, "session-1")


async def test_the_sdk_says_that_it_waits_for_an_installation(
    server: ServerProcess, npm: FakeNpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = hang(npm, tmp_path)
    monkeypatch.setattr(opened, "INSTALL_NOTICE_SECONDS", 0.01)
    said = anyio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "agent codex is not installed: the server installs it first" in record.getMessage():
                said.set()

    listener = Listener()
    logging.getLogger("sandbox_agent.client").addHandler(listener)
    try:
        with anyio.fail_after(SECONDS):
            async with SandboxAgent.connect(base_url=server.url) as sdk, anyio.create_task_group() as tasks:
                tasks.start_soon(partial(sdk.create_session, agent="codex", id="s"))
                await anyio.to_thread.run_sync(fifo.read_text)
                await said.wait()
                await anyio.to_thread.run_sync(fifo.write_text, "")
    finally:
        logging.getLogger("sandbox_agent.client").removeHandler(listener)


async def test_an_invalid_session_installs_nothing(server: ServerProcess, npm: FakeNpm) -> None:
    async with client(server) as http:
        answer = await http.post("/v1/sessions/one", json={"agent": "codex", "directory": "/no/such/folder"})
    assert answer.status_code == 400
    assert npm.calls == []


@pytest.mark.parametrize("how", ["option", "variable"])
async def test_a_server_that_must_not_install_says_which_command_does(
    tmp_path: Path, npm: FakeNpm, leftovers: Leftovers, how: str
) -> None:
    options = ["--require-preinstall"] if how == "option" else []
    env = {"SANDBOX_AGENT_REQUIRE_PREINSTALL": "1"} if how == "variable" else {}
    with serving(tmp_path, npm, leftovers, *options, **env) as server:
        async with client(server) as http:
            for path, body in (
                ("/v1/acp/one?agent=codex", INITIALIZE),
                ("/v1/sessions/one", {"agent": "codex"}),
            ):
                answer = await http.post(path, json=body)
                assert answer.status_code == 404
                assert "sandbox-agent agents install codex" in answer.json()["detail"]
            assert npm.calls == []
            # What a client explicitly asks for is done.
            assert (await http.post("/v1/agents/codex/install", json={})).status_code == 200
            assert (await http.post("/v1/acp/one?agent=codex", json=INITIALIZE)).status_code == 200


async def test_a_program_on_path_is_used_as_it_is(server: ServerProcess, npm: FakeNpm) -> None:
    program = npm.folder / "codex-acp"
    program.write_text(json.loads(npm.plan.read_text())["agent"])
    program.chmod(0o755)
    async with client(server) as http:
        assert (await http.post("/v1/acp/one?agent=codex", json=INITIALIZE)).status_code == 200
    assert npm.calls == []


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_server_that_ends_during_an_installation_leaves_nothing(
    tmp_path: Path, npm: FakeNpm, leftovers: Leftovers, how: str
) -> None:
    fifo = hang(npm, tmp_path)
    with serving(tmp_path, npm, leftovers) as server:
        async with client(server) as http, anyio.create_task_group() as tasks:
            refused = anyio.Event()

            async def post() -> None:
                try:
                    answer = await http.post("/v1/agents/codex/install", json={})
                    assert answer.status_code == 502
                except httpx2.TransportError:
                    assert how == "kill"
                refused.set()

            tasks.start_soon(post)
            await anyio.to_thread.run_sync(fifo.read_text)
            code = await anyio.to_thread.run_sync(getattr(server, how))
            assert code == (0 if how == "stop" else None)
            await refused.wait()
        await leftovers.gone()
        npm.behave()
        await anyio.to_thread.run_sync(server.start)
        assert not installed(server)["installed"]
        async with client(server) as http:
            assert (await http.post("/v1/agents/codex/install", json={})).status_code == 200
        folder = tmp_path / "data/sandbox-agent/agents/codex"
        assert len([path for path in folder.iterdir() if path.is_dir()]) == 1


async def test_the_sdk_installs_and_gets_the_reason_of_a_failure(server: ServerProcess, npm: FakeNpm) -> None:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        result = await sdk.install_agent("codex", agentProcessVersion="2.5.0")
        assert not result["already_installed"]
        assert result["artifacts"][0]["version"] == "2.5.0"
        assert (await sdk.install_agent("codex"))["already_installed"]
        assert (await sdk.get_agent("codex")).version == "9.9.9"
        session = await sdk.create_session(agent="opencode")
        assert session.agent_session_id == "session-1"
        npm.behave(fail="npm error code E404")
        with pytest.raises(InstallFailedError, match="E404"):
            await sdk.install_agent("codex", reinstall=True)
        before = len(npm.calls)
        for create in (sdk.create_session(agent="pi"), sdk.sessions.create("one", agent="pi")):
            with pytest.raises(InstallFailedError, match="E404"):
                await create
        assert len(npm.calls) == before + 2  # none is repeated
