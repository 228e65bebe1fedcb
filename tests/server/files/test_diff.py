"""``GET /v1/fs/diff``: the workspace of a session against its state when the session was created."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from sandbox_agent import ConflictError, RequestTimeoutError, SandboxAgent
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.server.files import baselines
from sandbox_agent.server.files.baselines import Baselines, managed_name
from sandbox_agent.server.files.places import Places
from sandbox_agent.server.files.tree import FileTree
from sandbox_agent.server.store import open_store
from sandbox_agent.wire.jsonrpc import dumps
from tests.server.files.test_files import problem
from tests.server.files.test_snapshots import git, make_repo
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    found = make_repo(tmp_path / "repo")
    (found / "changed").write_text("before\n")
    return found


def kept_server(folder: Path, *options: str, **env: str) -> ServerProcess:
    """A server whose sessions outlive it."""
    return our_server(folder, "--store", f"sqlite:{folder}/server.db", *options, env=env)


async def test_a_session_of_the_server_has_the_state_of_its_start_after_a_restart(
    tmp_path: Path, repo: Path
) -> None:
    with kept_server(tmp_path) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            await sdk.sessions.create("one", agent="mock", directory=str(repo))
            assert (await sdk.files.diff("one")).patch == b""
            (repo / "changed").write_text("between\n")
            await sdk.sessions.create("two", agent="mock", directory=str(repo))
            (repo / "changed").write_text("after\n")
            server.kill()
            server.start()
            first, second = await sdk.files.diff("one"), await sdk.files.diff("two")
    assert "-before\n+after\n" in first.text
    assert "-between\n+after\n" in second.text
    assert not first.truncated
    assert git(repo, "for-each-ref").count("\n") == 1
    assert git(repo, "stash", "list") == ""


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_session_of_a_client_is_compared_too(tmp_path: Path, repo: Path, store: str) -> None:
    options = () if store == "memory" else ("--store", f"sqlite:{tmp_path}/server.db")
    with our_server(tmp_path, *options) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            session = await sdk.create_session(agent="mock", cwd=str(repo))
            await session.prompt("echo hello")
            (repo / "changed").write_text("after\n")
            assert "-before\n+after\n" in (await sdk.files.diff(session)).text


async def test_a_session_that_is_created_over_the_fast_path_is_recorded(tmp_path: Path, repo: Path) -> None:
    with our_server(tmp_path) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:

            async def send(number: int, method: str, **params: object) -> dict[str, dict[str, str]]:
                body = dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
                headers = {"content-type": "application/json"}
                answer = await client.post(
                    "/v1/acp/s?agent=mock" if number == 1 else "/v1/acp/s", content=body, headers=headers
                )
                return answer.json()

            await send(1, "initialize", protocolVersion=1, clientCapabilities={})
            made = await send(2, "session/new", cwd=str(repo), mcpServers=[])
            native = made["result"]["sessionId"]
            await send(3, "session/prompt", sessionId=native, prompt=[{"type": "text", "text": "echo hello"}])
            (repo / "changed").write_text("after\n")
            answer = await client.get("/v1/fs/diff", params={"session": native, "agent": "mock"})
            assert answer.headers["content-type"].startswith("text/x-diff"), answer.text
            assert "-before\n+after\n" in answer.text
            assert (await client.get("/v1/fs/diff", params={"session": native})).text == answer.text


async def test_the_agent_begins_after_its_workspace_was_recorded(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "bin").mkdir()
    real = shutil.which("git")
    # A slow Git: the first prompt would come before the state is recorded.
    (tmp_path / "bin/git").write_text(f'#!/bin/sh\nsleep 0.1\nexec {real} "$@"\n')
    (tmp_path / "bin/git").chmod(0o755)
    put_launcher(tmp_path / "data", "codex", [sys.executable, "-m", "tests.support.shell_agent"])
    with our_server(tmp_path, env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            session = await sdk.create_session(agent="codex", cwd=str(repo))
            await session.prompt(f"echo after > {repo}/changed")
            assert "-before\n+after\n" in (await sdk.files.diff(session)).text


async def test_what_cannot_be_compared_is_a_problem_that_says_why(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "plain").mkdir()
    with kept_server(tmp_path) as server:
        async with (
            SandboxAgent.connect(base_url=server.url) as sdk,
            httpx2.AsyncClient(base_url=server.url) as client,
        ):
            await sdk.sessions.create("plain", agent="mock", directory=str(tmp_path / "plain"))
            with pytest.raises(ConflictError, match="is not in a Git repository"):
                await sdk.files.diff("plain")
            git(tmp_path / "plain", "init", "-q")
            with pytest.raises(ConflictError, match="was not a Git repository then"):
                await sdk.files.diff("plain")
            answer = await client.get("/v1/fs/diff", params={"session": "missing"})
            assert problem(answer) == (404, "session_not_found")
            assert problem(await client.get("/v1/fs/diff")) == (400, "invalid_request")
            await sdk.sessions.create("outside", agent="mock", directory=str(repo))
    with kept_server(tmp_path, "--fs-root", str(tmp_path / "plain")) as server:
        async with httpx2.AsyncClient(base_url=server.url) as client:
            answer = await client.get("/v1/fs/diff", params={"session": "outside"})
            assert problem(answer) == (403, "permission_denied")
    (tmp_path / "empty").mkdir()
    with kept_server(tmp_path, PATH=str(tmp_path / "empty")) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            await sdk.sessions.create("later", agent="mock", directory=str(repo))
            with pytest.raises(ConflictError, match="Git was not installed"):
                await sdk.files.diff("later")
            with pytest.raises(ConflictError, match="Git is not installed"):
                await sdk.files.diff("outside")


@asynccontextmanager
async def recording(tmp_path: Path) -> AsyncGenerator[Baselines]:
    """What records workspaces, in this process, with a store that has no sessions."""
    async with open_store("memory") as store:
        found = Baselines(FileTree(Places([], tmp_path)), tmp_path / "baselines", store.sessions)
        async with found.run():
            yield found


@pytest.fixture
def hanging_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Replaces Git by a program that does not end."""

    def replace() -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/git").write_text("#!/bin/sh\nexec sleep 1000\n")
        (tmp_path / "bin/git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    return replace


async def test_a_session_does_not_wait_long_for_a_git_that_hangs(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, hanging_git: Callable[[], None]
) -> None:
    monkeypatch.setattr(baselines, "RECORD_SECONDS", 0.05)
    hanging_git()
    async with recording(tmp_path) as found:
        made = found.begin(str(repo))
        await made.made.wait()
        made.name(managed_name("one"))
        with pytest.raises(ConflictError, match="was not recorded"):
            await found.compare(row_of("one", repo))


async def test_a_diff_does_not_wait_long_for_a_git_that_hangs(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, hanging_git: Callable[[], None]
) -> None:
    async with recording(tmp_path) as found:
        made = found.begin(str(repo))
        await made.made.wait()
        made.name(managed_name("one"))
        assert (await found.compare(row_of("one", repo))).patch == b""
        monkeypatch.setattr(baselines, "COMPARE_SECONDS", 0.05)
        hanging_git()
        with pytest.raises(RequestTimeoutError):
            await found.compare(row_of("one", repo))


async def test_a_state_without_a_session_is_dropped(tmp_path: Path, repo: Path) -> None:
    async with recording(tmp_path) as found:
        made = found.begin(str(repo))
        await made.made.wait()
        made.name("")
        made.name(managed_name("one"))
        await made.kept.wait()
        with pytest.raises(ConflictError, match="was not recorded"):
            await found.compare(row_of("one", repo))


def row_of(session_id: str, directory: Path) -> SessionRow:
    """Return the row of a session that the server drives."""
    return SessionRow(
        key=1,
        session_id=session_id,
        agent="mock",
        created_at=0,
        updated_at=0,
        managed=True,
        directory=str(directory),
    )


def test_what_a_killed_server_has_left_of_a_store_in_memory_is_deleted_by_the_next_one(
    tmp_path: Path,
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def memory_server(name: str) -> ServerProcess:
        (tmp_path / name).mkdir()
        return our_server(tmp_path / name, "--store", "memory", env={"TMPDIR": str(temporary)})

    def folders() -> set[str]:
        return {path.name for path in temporary.iterdir()}

    with memory_server("killed") as killed:
        left = folders()
        assert len(left) == 1
        with memory_server("running"):
            running = folders() - left
            assert left < folders()
            killed.kill()
            with memory_server("next"):
                assert folders() & (left | running) == running
    assert folders() == set()
