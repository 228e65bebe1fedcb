"""``--agent-user``: agents of a server of root run as another user."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_agent import SandboxAgent
from sandbox_agent.cli.agent_user import find_agent_user
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.runtime.user import find_user
from tests.runtime.children import alive, gone
from tests.server.talk import envelope, talk
from tests.support.servers import ServerProcess, free_port, put_launcher
from tests.support.unprivileged import unprivileged

pytestmark = pytest.mark.anyio

USER = find_user("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0 or USER is None, reason="needs root and the user nobody")
TOKEN = "a-token-that-nobody-may-read"
# An ACP agent in sh, because the interpreter of the tests may be out of nobody's reach.
AGENT = r"""#!/bin/sh
cd "$(pwd)" || exit 9
while read -r line; do
    id=$(printf %s "$line" | sed 's/.*"id": *\("[^"]*"\|[0-9]*\).*/\1/')
    case $line in
    *look*)
        {
            id -u; id -G; echo "$HOME $USER $LOGNAME"; pwd
            for file in __FILES__ /proc/$PPID/environ; do
                cat "$file" >/dev/null 2>&1 && echo "reads $file"
            done
            echo said >/dev/stderr && echo "writes to its stderr"
        } >__OUT__ ;;
    *leave*) setsid sh -c 'trap "" TERM; echo $$ >__OUT__; while :; do sleep 600; done' & ;;
    *session/new*) touch "$(printf %s "$line" | sed 's/.*"cwd": *"\([^"]*\)".*/\1/')/mine" || exit 8 ;;
    esac
    echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"sessionId\":\"s\",\"protocolVersion\":1}}"
done
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can open; that of the tests is root's."""
    path = Path(tempfile.mkdtemp(prefix="agent-user-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def server_of(folder: Path, *options: str, cwd: Path | None = None) -> ServerProcess:
    """Return a server whose agent ``other`` runs as nobody."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    out.chmod(0o777)
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    script = folder / "agent"
    files = f"{folder}/server.db {folder}/server.db-wal {folder}/server.db.lock {token}"
    script.write_text(AGENT.replace("__FILES__", files).replace("__OUT__", str(out / "seen")))
    script.chmod(0o755)
    put_launcher(folder / "data", "other", [str(script)])
    port = free_port()
    command = [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--port", str(port)]
    command += ["--agent-user", "nobody", "--token-file", str(token), "--store", f"sqlite:{folder}/server.db"]
    return ServerProcess(
        ["sh", "-c", 'cd "$0" && exec "$@"', str(cwd or folder), *command, *options],
        port=port,
        log=folder / "server.log",
        env={"XDG_DATA_HOME": str(folder / "data")},
        token=TOKEN,
    )


def why_not(folder: Path, *options: str, cwd: Path | None = None) -> str:
    """Start a server that must refuse its options, and return its log."""
    with pytest.raises(RuntimeError, match="is not healthy"), server_of(folder, *options, cwd=cwd):
        pass
    log = (folder / "server.log").read_text()
    assert "Traceback" not in log
    return log


@as_root
async def test_an_agent_runs_as_the_user_and_reads_none_of_the_servers_files(folder: Path) -> None:
    assert USER is not None
    with server_of(folder) as server:
        async with talk(server, open_=False) as talking:
            await talking.post(envelope("look", request_id=1), agent="other")
        seen = (folder / "out/seen").read_text().splitlines()
        assert seen[0] == str(USER.uid)
        assert set(seen[1].split()) == {str(group) for group in USER.groups}
        assert seen[2:] == [f"{USER.home} nobody nobody", str(folder), "writes to its stderr"]
        files = [folder / name for name in ("server.db", "server.db-wal", "server.db-shm")]
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
    assert "can't write its home folder" in server.log.read_text()


@as_root
async def test_the_server_ends_agents_of_another_user(folder: Path) -> None:
    with server_of(folder) as server:
        async with talk(server, open_=False) as talking:
            await talking.post(envelope("leave", request_id=1), agent="other")
            while not (text := (folder / "out/seen").read_text() if (folder / "out/seen").exists() else ""):
                await talking.client.get("/v1/health")
            child = int(text)
            assert alive(child)
            assert os.stat(f"/proc/{child}").st_uid == (USER.uid if USER else None)  # noqa: PTH116
            assert (await talking.client.delete(talking.path)).status_code < 300
            assert gone([child])


@as_root
async def test_the_agents_options_are_read_in_a_folder_that_it_can_write(folder: Path) -> None:
    with server_of(folder) as server:
        async with SandboxAgent.connect(base_url=server.url, token=TOKEN) as sdk:
            info = await sdk.get_agent("other", config=True)
            assert info.config_error is None
            session = await sdk.create_session(agent="other", cwd=str(folder / "out"))
            assert (folder / "out/mine").stat().st_uid == (USER.uid if USER else None)
            assert session.agent_session_id == "s"


@as_root
async def test_an_agent_that_the_user_cannot_start_is_an_error_that_names_the_user(folder: Path) -> None:
    with server_of(folder) as server:
        (folder / "data/sandbox-agent/bin/agent_processes/other-acp").chmod(0o700)
        async with talk(server, open_=False) as talking:
            response = await talking.post(envelope("look", request_id=1), agent="other")
        assert response.status_code == 502
        assert "as the user 'nobody': Permission denied" in response.json()["detail"]


@as_root
async def test_a_directory_that_the_user_cannot_open_is_refused(folder: Path, tmp_path: Path) -> None:
    closed = tmp_path  # pytest makes it for root alone
    with server_of(folder) as server:
        async with SandboxAgent.connect(base_url=server.url, token=TOKEN) as sdk:
            with pytest.raises(InvalidRequestError, match="the user 'nobody', who can't open"):
                await sdk.sessions.create("closed", agent="other", directory=str(closed))
            await sdk.sessions.create("open", agent="other", directory=str(folder / "out"))
    assert (folder / "out/mine").exists()


@as_root
def test_a_directory_that_hangs_counts_as_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert USER is not None
    assert USER.can_enter("/")
    monkeypatch.setattr("sandbox_agent.runtime.user.ENTER_SECONDS", 0.1)
    monkeypatch.setattr("sandbox_agent.runtime.user._ENTER", "exec sleep 600")
    assert not USER.can_enter("/")


@as_root
def test_files_that_the_user_can_read_are_refused_at_the_start(folder: Path) -> None:
    (folder / "server.db").touch()
    (folder / "server.db").chmod(0o644)
    assert f"who can read '{folder}/server.db': run chmod 600" in why_not(folder)
    (folder / "server.db").unlink()
    (folder / "readable").write_text(TOKEN)
    (folder / "readable").chmod(0o604)
    assert "readable': run chmod 600" in why_not(folder, "--token-file", str(folder / "readable"))


@as_root
def test_a_folder_that_the_user_cannot_open_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert f"agents would start in '{tmp_path}', which the user 'nobody' can't open" in why_not(
        folder, cwd=tmp_path
    )


@as_root
@pytest.mark.parametrize(
    ("name", "says"),
    [("root", "must not be root"), ("0", "must not be root"), ("no-such-user", "no user 'no-such-user'")],
)
def test_a_user_that_cannot_be_is_refused_at_the_start(folder: Path, name: str, says: str) -> None:
    assert says in why_not(folder, "--agent-user", name)


@as_root
def test_the_user_can_be_a_number() -> None:
    assert USER is not None
    assert find_agent_user(str(USER.uid)) == USER


@as_root
def test_a_server_without_capabilities_cannot_choose_a_user() -> None:
    command = [sys.executable, "-m", "sandbox_agent", "server", "--agent-user", "nobody", "--port", "0"]
    done = subprocess.run(
        unprivileged(*command, "--store", "memory"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 64
    assert "the capabilities CHOWN, KILL, SETGID and SETUID" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_roots_cannot_choose_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InvalidRequestError, match="this server runs as uid 1000"):
        find_agent_user("nobody")


@as_root
def test_a_socket_of_root_is_closed_to_the_user(folder: Path) -> None:
    command = [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--uds", str(folder / "socket")]
    options = ["--agent-user", "nobody", "--store", "memory"]
    server = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert server.stderr is not None
        log = ""
        while "listens on the socket" not in log:
            line = server.stderr.readline()
            assert line, log
            log += line
        assert "Its agents run as another user" in log
        assert USER is not None
        assert not USER.can(folder / "socket", os.W_OK)
        assert USER.can(folder, os.X_OK)
    finally:
        server.terminate()
        server.communicate(timeout=15)
