"""``sandbox-agent exec``: in a real terminal, and with pipes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from tests.support.servers import ServerProcess, our_server

COMMAND = [sys.executable, "-m", "sandbox_agent.cli.main", "exec"]
TOKEN = "s3cret-token-0123456789"
SECONDS = 15.0
# The number of write(2).
WRITE = "64" if platform.machine() == "aarch64" else "1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with our_server(tmp_path_factory.mktemp("exec"), token=TOKEN) as running:
        yield running


def command(server: ServerProcess, *words: str) -> list[str]:
    return [*COMMAND, "--endpoint", server.own_url, "--token", TOKEN, *words]


def processes(server: ServerProcess) -> list[dict[str, object]]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx2.get(f"{server.own_url}/v1/processes", headers=headers)
    found: list[dict[str, object]] = answer.json()["processes"]
    return found


def run(server: ServerProcess, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(server, *words), input=given, capture_output=True, timeout=SECONDS, check=False
    )


class Screen:
    """A real terminal in which a command runs."""

    def __init__(self, words: list[str], size: tuple[int, int] = (30, 100)) -> None:
        self.ours, self.theirs = os.openpty()
        termios.tcsetwinsize(self.theirs, size)
        self.before = termios.tcgetattr(self.theirs)
        self.output = b""
        self.child = subprocess.Popen(
            words,
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def says(self, text: bytes) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.output:
            left = deadline - time.monotonic()
            assert left > 0, self.output
            if select.select([self.ours], [], [], left)[0]:
                self.output += os.read(self.ours, 65_536)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.theirs)[3] & termios.ECHO

    def wait(self) -> int:
        deadline = time.monotonic() + SECONDS
        while (code := self.child.poll()) is None:
            assert time.monotonic() < deadline, self.output
            if select.select([self.ours], [], [], 0.02)[0]:
                self.output += os.read(self.ours, 65_536)
        return code


@contextmanager
def screen(server: ServerProcess, *words: str) -> Generator[Screen]:
    """Run the command in a terminal, which has to be as it was in the end."""
    found = Screen(command(server, *words))
    try:
        yield found
        assert termios.tcgetattr(found.theirs) == found.before
    finally:
        if found.child.poll() is None:
            found.child.kill()
        found.child.wait()
        os.close(found.ours)
        os.close(found.theirs)


SHELL = ("--env", "PS1=> ", "--env", "ENV=", "-it", "--", "sh", "-i")


def test_a_shell_in_a_real_terminal(server: ServerProcess) -> None:
    with screen(server, *SHELL) as shown:
        shown.says(b"> ")
        assert shown.is_raw()
        shown.type("stty size; tty; echo $((1+1))-$PS1\r")
        shown.says(b"30 100")
        shown.says(b"2->")
        termios.tcsetwinsize(shown.ours, (20, 60))
        shown.type("while [ \"$(stty size)\" != '20 60' ]; do sleep 0.01; done; echo resized-$((2+2))\r")
        shown.says(b"resized-4")
        trap = "trap 'echo got-$((3+3)); exit' INT; echo ready-$((4+4)); while :; do sleep 0.01; done"
        shown.type(f'sh -c "{trap}"\r'.replace("$", "\\$"))
        shown.says(b"ready-8")
        shown.type("\x03")
        shown.says(b"got-6")
        shown.output = b""
        shown.type("\r")
        shown.says(b"> ")
        shown.type("exit 7\r")
        assert shown.wait() == 7
    assert processes(server) == []


def test_a_signal_that_ends_it_restores_the_terminal_and_kills_the_command(server: ServerProcess) -> None:
    with screen(server, *SHELL) as shown:
        shown.says(b"> ")
        assert shown.is_raw()
        assert len(processes(server)) == 1
        shown.child.send_signal(signal.SIGTERM)
        assert shown.wait() == 128 + signal.SIGTERM
    assert processes(server) == []


def test_a_server_that_is_killed_restores_the_terminal(tmp_path: Path) -> None:
    with our_server(tmp_path, token=TOKEN) as server:
        with screen(server, *SHELL) as shown:
            shown.says(b"> ")
            server.kill()
            assert shown.wait() == 75
        assert b"disconnected" in shown.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_each_signal_restores_the_terminal_and_kills_the_command(
    server: ServerProcess, number: signal.Signals
) -> None:
    with screen(server, *SHELL) as shown:
        shown.says(b"> ")
        shown.child.send_signal(number)
        assert shown.wait() == 128 + number
        assert b"Traceback" not in shown.output
    assert processes(server) == []


def test_a_terminal_that_is_closed_kills_the_command(server: ServerProcess) -> None:
    shown = Screen([*command(server, *SHELL)])
    shown.says(b"> ")
    os.close(shown.theirs)
    os.close(shown.ours)
    # By SIGHUP, or by the error of its output.
    assert shown.child.wait(SECONDS) in (128 + signal.SIGHUP, 128 + signal.SIGPIPE)
    assert processes(server) == []


def test_a_signal_ends_it_when_its_terminal_takes_no_output(server: ServerProcess) -> None:
    with screen(server, "-t", "sh", "-c", "echo up; yes") as shown:
        shown.says(b"up")
        wait_blocked(shown.child.pid)
        shown.child.send_signal(signal.SIGTERM)
        assert shown.child.wait(SECONDS) == 128 + signal.SIGTERM
    assert processes(server) == []


def test_a_signal_ends_it_when_its_output_is_not_read(server: ServerProcess) -> None:
    with subprocess.Popen(command(server, "yes"), stdout=subprocess.PIPE) as child:
        wait_blocked(child.pid)
        child.send_signal(signal.SIGINT)
        assert child.wait(SECONDS) == 130
    assert processes(server) == []


def wait_blocked(pid: int) -> None:
    """Wait until a thread of a process waits for what reads its output."""
    deadline = time.monotonic() + SECONDS
    while True:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                if (task / "syscall").read_text().split()[:2] == [WRITE, "0x1"]:
                    return
        assert time.monotonic() < deadline


def test_what_is_typed_before_the_command_runs_reaches_it(server: ServerProcess) -> None:
    with screen(server, *SHELL) as shown:
        shown.type("echo typed-$((1+1)); exit 3\r")
        shown.says(b"typed-2")
        assert shown.wait() == 3
        assert b"Traceback" not in shown.output


def test_input_without_a_newline_ends_in_a_terminal(server: ServerProcess) -> None:
    script = "stty -echo; printf ready; cat; echo end"
    done = run(server, "-it", "--", "sh", "-c", script, given=b"half")
    # The terminal echoes input that arrives before the echo is off.
    assert (done.returncode, done.stdout.removeprefix(b"half")) == (0, b"readyhalfend\r\n")


def test_standard_streams_that_are_closed(server: ServerProcess) -> None:
    for closed, words in (("<&-", "-i"), (">&-", "-i"), ("<&- >&- 2>&-", "-i"), ("<&-", "-it")):
        line = f'exec "$@" {closed}'
        arguments = command(server, words, "--", "sh", "-c", "cat; echo out; exit 4")
        done = subprocess.run(["sh", "-c", line, "sh", *arguments], capture_output=True, timeout=SECONDS)
        assert (done.returncode, done.stderr) == (4, b""), closed
    assert processes(server) == []


def test_an_input_that_fails_is_named_and_ends(server: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        given, _ = listener.accept()
    words = command(server, "-i", "sh", "-c", "echo up; cat; echo end")
    with (
        given,
        subprocess.Popen(
            words, stdin=given.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # which resets the connection
        output, errors = child.communicate(timeout=SECONDS)
    assert (child.returncode, output) == (0, b"end\n")
    assert errors == b"sandbox-agent: standard input can't be read: Connection reset by peer\n"


def test_a_terminal_of_unknown_size_has_the_usual_one(server: ServerProcess) -> None:
    shown = Screen(command(server, "-it", "--", "sh", "-c", "read go; stty size"), size=(0, 0))
    try:
        shown.type("go\r")
        shown.says(b"24 80")
        assert shown.wait() == 0
    finally:
        shown.child.wait()
        os.close(shown.ours)
        os.close(shown.theirs)


def test_a_signal_while_the_command_is_started_leaves_no_command(server: ServerProcess) -> None:
    with HeldRelay(server.port) as relay:
        words = [*COMMAND, "-e", f"http://127.0.0.1:{relay.port}", "--token", TOKEN, "sleep", "1000"]
        with subprocess.Popen(words, stderr=subprocess.PIPE) as child:
            assert relay.held.wait(SECONDS)  # the server has been asked, and its answer is on the way
            assert len(processes(server)) == 1
            child.send_signal(signal.SIGTERM)
            relay.go_on.set()
            assert child.wait(SECONDS) == 128 + signal.SIGTERM
            assert child.stderr is not None
            assert child.stderr.read() == b""
    assert processes(server) == []


class HeldRelay:
    """Relays connections to a server, and holds the answer to the creation of a process back."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.held, self.go_on = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SECONDS)
        for each in self._sockets:
            each.close()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._sockets += [client, server]
                creates = threading.Event()
                self._start(self._copy, client, server, creates)
                self._start(self._copy, server, client, creates)

    def _copy(self, source: socket.socket, target: socket.socket, creates: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if data.startswith(b"POST /v1/processes "):
                    creates.set()
                elif data.startswith(b"HTTP/1.1") and creates.is_set() and not self.held.is_set():
                    self.held.set()
                    self.go_on.wait(SECONDS)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def test_a_server_that_is_silent_does_not_hold_the_end_up(tmp_path: Path) -> None:
    with our_server(tmp_path, token=TOKEN) as server, screen(server, *SHELL) as shown:
        shown.says(b"> ")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            shown.child.send_signal(signal.SIGTERM)
            assert shown.wait() == 128 + signal.SIGTERM
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_an_option_that_is_unknown_is_not_the_command(server: ServerProcess) -> None:
    done = run(server, "--cwdd", "/tmp", "--", "true")
    assert (done.returncode, b"--cwdd" in done.stderr) == (2, True)
    assert run(server, "echo", "--cwdd", "-x").stdout == b"--cwdd -x\n"


def test_a_command_that_a_signal_ends_in_a_terminal(server: ServerProcess) -> None:
    with screen(server, "-t", "sh", "-c", "echo hi; kill -TERM $$") as shown:
        assert shown.wait() == 128 + signal.SIGTERM
        assert not shown.is_raw()
        assert b"hi" in shown.output


def test_a_terminal_without_one_here_gets_the_input_and_its_end(server: ServerProcess) -> None:
    done = run(server, "-it", "--", "sh", "-c", "stty -echo; stty size; cat; echo end", given=b"one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"24 80\r\n")
    assert done.stdout.endswith(b"one\r\ntwo\r\nend\r\n")


def test_without_a_terminal_output_and_errors_stay_apart(server: ServerProcess, tmp_path: Path) -> None:
    script = "pwd; echo problem >&2; echo $WHAT; cat; exit 5"
    options = ["--cwd", str(tmp_path), "--env", "WHAT=a=b"]
    done = run(server, *options, "--", "sh", "-c", script, given=b"not sent")
    assert (done.returncode, done.stdout, done.stderr) == (5, f"{tmp_path}\na=b\n".encode(), b"problem\n")
    assert processes(server) == []


def test_input_is_sent_to_its_end(server: ServerProcess, tmp_path: Path) -> None:
    data = os.urandom(1_000_000)
    assert run(server, "-i", "cat", given=data).stdout == data
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:  # which the event loop can't wait for
        done = subprocess.run(command(server, "-i", "cat"), stdin=file, stdout=subprocess.PIPE, check=True)
    assert done.stdout == data


def test_a_command_that_does_not_read_its_input(server: ServerProcess) -> None:
    done = run(server, "-i", "sh", "-c", "exec <&-; echo done", given=b"x" * 1_000_000)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_ctrl_c_kills_the_command(server: ServerProcess) -> None:
    with subprocess.Popen(
        command(server, "sh", "-c", "echo up; sleep 1000"), stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(SECONDS) == 130
    assert processes(server) == []


def test_output_that_nothing_reads_any_more_ends_the_command(server: ServerProcess) -> None:
    words = command(server, "sh", "-c", "echo up; while sleep 0.01; do echo more; done")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.stdout.close()
        assert child.wait(SECONDS) == 128 + signal.SIGPIPE
    assert processes(server) == []


def test_what_cannot_be_started_is_named(server: ServerProcess) -> None:
    done = run(server, "--", "no-such-command")
    assert done.returncode not in (0, 1)
    assert b"no-such-command" in done.stderr
    assert run(server, "--env", "NAME", "--", "true").returncode == 2
    assert run(server).returncode == 2
