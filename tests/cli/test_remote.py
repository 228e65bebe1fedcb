"""``sandbox-agent api sessions``, ``tail`` and ``search``, over a running server."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any
from uuid import uuid4

import pytest

from tests.cli.conftest import SECONDS, Shell
from tests.support.servers import ServerProcess, our_server

TOKEN = "cli-token"
Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a token."""
    with our_server(tmp_path_factory.mktemp("server"), token=TOKEN) as server:
        yield server


@pytest.fixture
def run(shell: Shell, server: ServerProcess) -> Run:
    """Runs a command against the server."""

    def run(*words: str, stdin: str = "", token: str = TOKEN) -> CompletedProcess[str]:
        env = {"SANDBOX_AGENT_TOKEN": token}
        return shell.run(*words, "--endpoint", server.url, stdin=stdin, env=env)

    return run


@pytest.fixture
def session(run: Run) -> str:
    """A session of the test's own."""
    name = f"s-{uuid4()}"
    done = run("api", "sessions", "create", name, "--agent", "mock", "--title", "Greetings")
    assert json.loads(done.stdout)["healthy"] is True
    return name


def lines(done: CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_turn_is_written_as_events_and_read_again(run: Run, session: str) -> None:
    turn = lines(run("api", "sessions", "send-message-stream", session, "--message", "echo hello"))
    assert (turn[0]["type"], turn[-1]["type"]) == ("turn.started", "turn.ended")
    first = turn[0]["sequence"]
    [page] = lines(run("api", "sessions", "events", session, "--offset", str(first - 1), "--limit", "2"))
    assert page == {"events": turn[:2], "hasMore": True}
    [raw] = lines(run("api", "sessions", "events", session, "--include-raw"))
    assert any("raw" in event for event in raw["events"])
    assert run("api", "sessions", "terminate", session).stdout == ""
    followed = lines(run("api", "sessions", "events-sse", session))
    assert followed[first - 1 : first - 1 + len(turn)] == turn
    assert followed[-1]["type"] == "session.ended"


def test_a_message_is_sent_once_under_its_key(run: Run, session: str) -> None:
    words = ("api", "sessions", "send-message", session, "-m", "-", "--idempotency-key", "k")
    assert lines(run(*words, stdin="echo once")) == lines(run(*words, stdin="echo once"))
    [info] = lines(run("api", "sessions", "get", session))
    [turn] = info["turns"]
    assert turn["idempotencyKey"] == "k"
    assert run(*words, stdin="echo twice").returncode == 73


def test_tail_shows_a_request_with_the_command_that_answers_it(
    run: Run, session: str, shell: Shell, server: ServerProcess
) -> None:
    assert run("api", "sessions", "send-message", session, "-m", "permission").returncode == 0
    shell.env["SANDBOX_AGENT_TOKEN"] = TOKEN
    tail = shell.start("tail", session, "--endpoint", server.url)
    assert tail.stdout is not None
    command = next(line for line in tail.stdout if b"reply-permission" in line).decode().split()
    assert command[:5] == ["sandbox-agent", "api", "sessions", "reply-permission", session]
    done = run(*command[1:6], "--reply", "once")
    assert (done.returncode, done.stdout) == (0, "")
    assert next(line for line in tail.stdout if b"accept" in line).startswith(b"permission ")
    again = run(*command[1:6], "--reply", "reject")
    assert again.returncode == 73
    assert len(again.stderr.splitlines()) == 1
    run("api", "sessions", "terminate", session)
    assert tail.wait(SECONDS) == 0
    tail.communicate()


def test_tail_ends_quietly_at_ctrl_c(run: Run, session: str, shell: Shell, server: ServerProcess) -> None:
    shell.env["SANDBOX_AGENT_TOKEN"] = TOKEN
    tail = shell.start("tail", session, "--endpoint", server.url, "--json")
    assert tail.stdout is not None
    assert b"session.started" in tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    assert tail.wait(SECONDS) == 130
    assert tail.communicate()[1] == b""


def test_tail_tells_the_history_to_people(run: Run, session: str) -> None:
    run("api", "sessions", "send-message-stream", session, "-m", "echo hello there")
    done = run("tail", session, "--no-follow")
    assert done.returncode == 0
    assert f"session {session}  agent mock  Greetings" in done.stdout
    assert "> echo hello there\n" in done.stdout
    assert "\nhello there\n" in done.stdout
    assert done.stderr == ""


def test_tail_follows_until_the_session_has_ended(run: Run, session: str) -> None:
    run("api", "sessions", "send-message-stream", session, "-m", "echo hello there")
    run("api", "sessions", "terminate", session)
    done = run("tail", session)
    assert done.returncode == 0
    assert "ended  terminated by the daemon" in done.stdout
    assert lines(run("tail", session, "--json", "--offset", "3"))[0]["sequence"] == 4


def test_search_writes_hits_as_lines(run: Run, session: str) -> None:
    word = f"needle{uuid4().hex}"
    run("api", "sessions", "send-message-stream", session, "-m", f"echo a {word} here")
    done = run("search", word, "--since", "1h", "--session", session, "--agent", "mock")
    assert done.returncode == 0
    assert all(line.startswith(f"{session}:") for line in done.stdout.splitlines())
    assert f"[{word}]" in done.stdout
    hits = lines(run("search", word, "--json", "--limit", "1"))
    assert [hit["sessionId"] for hit in hits] == [session]
    page = run("search", word, "--limit", "1")
    assert page.stderr == "more: --offset 1\n"
    rest = run("search", word, "--limit", "1", "--offset", "1")
    assert (page.stdout + rest.stdout, rest.stderr) == (done.stdout, "")
    nothing = run("search", word, "--until", "1d")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "nothing found\n")


def test_sessions_are_listed_page_by_page(run: Run, session: str) -> None:
    first = lines(run("api", "sessions", "list", "--limit", "1"))[0]
    [listed] = first["sessions"]
    assert listed["sessionId"] == session
    done = run("api", "sessions", "list", "--cursor", "nonsense")
    assert done.returncode == 64
    assert len(done.stderr.splitlines()) == 1


def test_a_session_is_exported_into_a_file(run: Run, session: str, shell: Shell) -> None:
    run("api", "sessions", "send-message-stream", session, "-m", "echo exported words")
    words = ("api", "sessions", "export", session)
    assert run(*words, "--format", "markdown", "--output", "session.md").returncode == 0
    assert "exported words" in (shell.folder / "session.md").read_text()
    assert not list(shell.folder.glob("*.partial"))
    sequences = [event["sequence"] for event in lines(run(*words))]
    assert sequences == list(range(1, len(sequences) + 1))


def test_a_session_is_erased(run: Run, session: str) -> None:
    assert run("api", "sessions", "delete", session).returncode == 0
    gone = run("api", "sessions", "get", session)
    assert gone.returncode == 66
    assert gone.stderr.startswith("sandbox-agent: session not found")


def test_a_wrong_token_is_one_line(run: Run) -> None:
    done = run("api", "sessions", "list", token="wrong")
    assert done.returncode == 77
    assert len(done.stderr.splitlines()) == 1
    assert "wrong" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [("api", "sessions", "send-message", "s", "-m", "hello"), ("tail", "s"), ("search", "word")],
    ids=lambda words: words[0],
)
def test_a_server_that_is_not_there_is_one_line_at_once(shell: Shell, words: tuple[str, ...]) -> None:
    done = shell.run(*words, "--endpoint", "http://127.0.0.1:9")
    assert done.returncode == 75
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("api", "sessions", "create", "s"), "Missing option '--agent'"),
        (("api", "sessions", "send-message", "s", "-m", " "), "the message is empty"),
        (("api", "sessions", "reply-permission", "s", "p", "-r", "maybe"), "'maybe' is not one of"),
        (("api", "sessions", "reply-question", "s", "q", "-a", "yes"), "--answers must be a JSON array"),
        (("search", "word", "--since", "soon"), "invalid time 'soon'"),
        (("tail", "s", "--endpoint", "ftp://host"), "--endpoint must be an http(s) URL"),
    ],
)
def test_a_wrong_command_line_is_said(shell: Shell, words: tuple[str, ...], complaint: str) -> None:
    done = shell.run(*words)
    assert done.returncode == 2
    assert complaint in done.stderr
