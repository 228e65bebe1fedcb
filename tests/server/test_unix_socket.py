"""``--uds``: a server without a port."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest

from sandbox_agent import SandboxAgent
from tests.support.servers import SERVER, descendants, serving

COMMAND = [*SERVER, "--store", "memory"]


def ask(path: Path, where: str = "/v1/health", **headers: str) -> int:
    """Return the status of a response over a socket."""
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
        return client.get(where, headers=headers).status_code


def answers(path: Path) -> bool:
    return ask(path) == 200


def refused(*options: str) -> str:
    """Start a server that must fail, and return what it says."""
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode not in (0, None), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.anyio
async def test_the_sdk_uses_a_server_that_has_no_port(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with serving(path) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ports_of(server.pid) == []
        async with SandboxAgent.connect(transport=httpx2.AsyncHTTPTransport(uds=str(path))) as sdk:
            session = await sdk.create_session(agent="mock")
            assert (await session.prompt("hello")).stop_reason == "end_turn"
            await sdk.sessions.create("over-a-socket", agent="mock")
            assert (await sdk.sessions.get("over-a-socket")).agent == "mock"
        server.terminate()
        assert server.wait(15) == 0
    assert not path.exists()


def ports_of(pid: int) -> list[str]:
    """Return the TCP sockets of a process and its descendants that listen."""
    inodes = {
        link.readlink().name
        for process in (pid, *descendants(pid))
        for link in Path(f"/proc/{process}/fd").iterdir()
        if link.is_symlink()
    }
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        if Path(f"/proc/{pid}/net/{table}").exists()
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]


def test_a_token_is_needed_at_a_socket_too(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with serving(path, "--token", "a-long-token"):
        assert ask(path, "/v1/acp") == 401
        assert ask(path, "/v1/acp", authorization="Bearer a-long-token") == 200


def test_any_host_is_served_because_no_browser_reaches_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with serving(path):
        assert ask(path, "/v1/acp", host="any.example") == 200


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with serving(path) as server:
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert path.is_socket()
    with serving(path):
        assert answers(path)


def test_the_socket_of_a_running_server_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with serving(path):
        assert "another server listens there" in refused("--uds", str(path))
        assert answers(path)


def test_a_server_that_ends_leaves_the_socket_of_another_one(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with serving(path) as first:
        path.unlink()
        with serving(path):
            first.terminate()
            assert first.wait(15) == 0
            assert answers(path)


def test_of_servers_that_start_at_once_one_gets_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    command = [*COMMAND, "--uds", str(path)]
    servers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        ended = [server for server in servers if listens(server) is False]
        assert len(ended) == 3
        assert answers(path)
    finally:
        for server in servers:
            server.terminate()
            server.communicate(timeout=15)
    assert not path.exists()


def listens(server: subprocess.Popen[str]) -> bool:
    """Wait until a server listens, or has ended."""
    assert server.stderr is not None
    for line in server.stderr:
        if "listens on the socket" in line:
            return True
        if "another server listens there" in line:
            return False
    raise AssertionError("the server ended without an explanation")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--uds", "{folder}/x", "--port", "2468"], "--uds and --port exclude each other"),
        (["--uds", "{folder}/x", "--host", "127.0.0.1"], "--uds and --host exclude each other"),
        (["--uds", "{folder}/none/x"], "No such file or directory"),
        (["--uds", "{folder}/file"], "a file that is not a socket"),
        (["--uds", "{folder}/" + "x" * 120], "too long"),
    ],
)
def test_paths_that_cannot_be_are_refused_with_the_reason(
    tmp_path: Path, options: Sequence[str], says: str
) -> None:
    (tmp_path / "file").write_text("kept")
    assert says in refused(*(option.format(folder=tmp_path) for option in options))
    assert (tmp_path / "file").read_text() == "kept"


def test_a_relative_path_is_in_the_servers_folder(tmp_path: Path) -> None:
    with serving("agent.sock", cwd=tmp_path):
        assert (tmp_path / "agent.sock").is_socket()


def test_a_folder_that_another_program_has_locked_is_waited_for_a_moment(tmp_path: Path) -> None:
    holder = [sys.executable, "-c", LOCK, str(tmp_path)]
    with subprocess.Popen(holder, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as locked:
        assert locked.stdout is not None
        locked.stdout.readline()
        assert "another program has locked the folder" in refused("--uds", str(tmp_path / "agent.sock"))
        locked.kill()


LOCK = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""
