"""``sandbox-agent egress-proxy`` as a program."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "sandbox_agent.cli.main", "egress-proxy"]


def ask(address: str | tuple[str, int], request: bytes) -> bytes:
    """Send a request and return the answer."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(20)
        connection.connect(address)
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
        return answer


def start(*options: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[str]:
    """Start the proxy; it listens when this returns."""
    process = subprocess.Popen([*COMMAND, *options], stderr=subprocess.PIPE, text=True, pass_fds=pass_fds)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "the egress proxy listens on" in line, line + process.stderr.read()
    return process


def end(process: subprocess.Popen[str]) -> str:
    """End the proxy and return the rest of its log."""
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    return log


def test_it_serves_at_a_port_and_logs_what_it_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = start("--port", str(port), "--allow-host", "a.test")
    answer = ask(("127.0.0.1", port), b"CONNECT b.test:443 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 407 ")
    assert "does not allow b.test:443" in end(process)


def test_it_serves_at_a_socket_of_this_user_and_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    process = start("--uds", str(path), "--log-format", "json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ask(str(path), b"CONNECT b.test:443 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 407 ")
    assert '"message": "the sandbox does not allow b.test:443' in end(process)
    assert not path.exists()


def test_it_serves_at_a_socket_that_it_inherits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start("--fd", str(listener.fileno()), pass_fds=[listener.fileno()])
        address = listener.getsockname()
    assert ask(address, b"CONNECT b.test:443 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 407 ")
    end(process)


def test_an_open_connection_does_not_hold_up_its_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start("--fd", str(listener.fileno()), pass_fds=[listener.fileno()])
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"GET /refusals HTTP/1.1\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            end(process)


def test_it_ends_with_its_lifeline() -> None:
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptors = [read, listener.fileno()]
        process = subprocess.Popen(
            [*COMMAND, "--fd", str(listener.fileno())],
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=descriptors,
            env={**os.environ, "SANDBOX_AGENT_LIFELINE": str(read)},
        )
        os.close(read)
        assert process.stderr is not None
        assert "listens" in process.stderr.readline()
        os.close(write)
        process.communicate(timeout=20)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--allow-host", "https://a.test"], "it is for a host, not for a URL"),
        (["--uds", "x", "--port", "1"], "exclude each other"),
        (["--uds", "x", "--fd", "3"], "exclude each other"),
        (["--uds", "/none/x"], "can't listen on the socket '/none/x'"),
        (["--fd", "77"], "can't listen on --fd 77"),
        (["--host", "192.0.2.1"], "can't listen on 192.0.2.1:3128"),
    ],
)
def test_options_that_are_wrong_are_errors(options: list[str], why: str) -> None:
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_it_ends_when_no_server_has_been_connected_for_long(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    process = start("--uds", str(path), "--exit-when-alone", "0.2")
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "no server of a sandbox has been connected for 0.2 s" in log
    assert not path.exists()


def test_it_stays_while_a_server_is_connected(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    process = start("--uds", str(path), "--exit-when-alone", "2")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /refusals HTTP/1.1\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.5)
    process.communicate(timeout=20)
    assert process.returncode == 0
