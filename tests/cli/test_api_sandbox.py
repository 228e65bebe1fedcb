"""``sandbox-agent api processes``, ``api agents`` and ``api config``, over a running server."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.cli.conftest import COMMAND, Shell
from tests.support.servers import ServerProcess, free_port, our_server, published_server

Run = Callable[..., CompletedProcess[str]]
SECONDS = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("api")
    (folder / "home").mkdir()
    with our_server(folder, "--agent-command", "broken=false", env={"HOME": str(folder / "home")}) as server:
        yield server


def addressed(server: ServerProcess, words: tuple[str, ...]) -> list[str]:
    """Put the server's address behind the name of a command: options of a program are not the command's."""
    depth = 3 if words[1] in ("config", "mcp", "skills") else 2
    return [*words[:depth], "-e", server.url, *words[depth:]]


@pytest.fixture
def run(shell: Shell, server: ServerProcess) -> Run:
    """Runs a command of ``api`` against the server."""

    def run(*words: str, stdin: str = "", code: int = 0) -> CompletedProcess[str]:
        done = shell.run("api", *addressed(server, words), stdin=stdin)
        assert done.returncode == code, done.stderr
        return done

    return run


def result(done: CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


def outputs(entries: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(entry["data"]) for entry in entries)


def test_a_process_is_created_listed_stopped_and_deleted(run: Run, tmp_path: Path) -> None:
    script = "echo $WHAT; pwd; exec sleep 1000"
    options = ["--cwd", str(tmp_path), "--env", "WHAT=a=b"]
    process = result(run("processes", "create", *options, "sh", "-c", script))
    assert (process["status"], process["args"]) == ("running", ["-c", script])
    name = process["id"]
    assert name in [each["id"] for each in result(run("processes", "list", "--owner", "user"))["processes"]]
    failed = run("processes", "delete", name, code=73)
    assert failed.stderr.count("\n") == 1
    assert result(run("processes", "stop", name, "--wait", "5"))["exitSignal"] == signal.SIGTERM
    assert result(run("processes", "get", name))["status"] == "exited"
    logs = result(run("processes", "logs", name, "--stream", "stdout"))
    assert outputs(logs["entries"]) == f"a=b\n{tmp_path}\n".encode()
    assert run("processes", "logs", name, "--raw").stdout == f"a=b\n{tmp_path}\n"
    assert run("processes", "delete", name).stdout == ""
    assert run("processes", "get", name, code=66).stderr.startswith("sandbox-agent: ")


def test_a_process_is_killed(run: Run) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    name = result(run("processes", "create", "--restart", "always", "--", "sh", "-c", script))["id"]
    ended = result(run("processes", "kill", name, "--wait", "5"))
    assert (ended["exitSignal"], ended["restart"]["state"]) == (signal.SIGKILL, "ended")


def test_input_is_sent_from_an_option_a_file_and_standard_input(run: Run, tmp_path: Path) -> None:
    name = result(run("processes", "create", "cat"))["id"]
    (tmp_path / "file").write_text("two\n")
    assert result(run("processes", "input", name, "--data", "one\n")) == {"bytesWritten": 4}
    assert result(run("processes", "input", name, str(tmp_path / "file"))) == {"bytesWritten": 4}
    text = "three\n" * 30_000  # more than a request may bring
    assert result(run("processes", "input", name, "--eof", stdin=text)) == {"bytesWritten": len(text)}
    assert run("processes", "logs", name, "--follow", "--raw").stdout == "one\ntwo\n" + text
    ended = run("processes", "input", name, "--data", "late", code=73)
    assert ended.stderr.count("\n") == 1


def test_a_one_shot_command_answers_with_its_output(run: Run) -> None:
    done = result(run("processes", "run", "sh", "-c", "echo out; echo problem >&2; exit 5"))
    assert (done["exitCode"], done["stdout"], done["stderr"]) == (5, "out\n", "problem\n")
    cut = result(run("processes", "run", "--max-output-bytes", "3", "--timeout", "20", "echo", "long"))
    assert (cut["stdout"], cut["stdoutTruncated"]) == ("lon", True)
    assert result(run("processes", "run", "--timeout", "0.2", "sleep", "1000"))["timedOut"] is True
    assert "no-such-program" in run("processes", "run", "no-such-program", code=64).stderr
    assert run("processes", "run", "--unknown", "true", code=2).stdout == ""


def test_the_logs_are_chosen_by_stream_and_sequence(run: Run, server: ServerProcess) -> None:
    script = "echo 1; read a; echo 2 >&2; read a; echo 3"
    name = result(run("processes", "create", "sh", "-c", script))["id"]
    with following(server, name) as process:
        for expected in (b"1\n", b"2\n", b"3\n"):
            assert process.stdout is not None
            entry = json.loads(process.stdout.readline())
            assert base64.b64decode(entry["data"]) == expected
            if expected != b"3\n":
                run("processes", "input", name, "--data", "\n")
        assert process.wait(SECONDS) == 0
    since = result(run("processes", "logs", name, "--since", "1"))["entries"]
    assert (outputs(since), [entry["sequence"] for entry in since]) == (b"2\n3\n", [2, 3])
    assert outputs(result(run("processes", "logs", name, "--tail", "1"))["entries"]) == b"3\n"
    shown = run("processes", "logs", name, "--raw")
    assert (shown.stdout, shown.stderr) == ("1\n3\n", "2\n")


def following(server: ServerProcess, name: str, *options: str) -> subprocess.Popen[bytes]:
    words = [*COMMAND, "api", "processes", "logs", name, "--follow", *options, "-e", server.url]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_ctrl_c_ends_following_and_not_the_process(run: Run, server: ServerProcess) -> None:
    name = result(run("processes", "create", "sh", "-c", "echo up; exec sleep 1000"))["id"]
    with following(server, name) as process:
        assert process.stdout is not None
        assert b'"sequence":1' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert result(run("processes", "kill", name))["exitSignal"] == signal.SIGKILL


@pytest.mark.parametrize("options", [(), ("--raw",)])
def test_output_that_nothing_reads_ends_following_without_a_traceback(
    run: Run, server: ServerProcess, options: tuple[str, ...]
) -> None:
    script = "echo up; while sleep 0.01; do echo more; done"
    name = result(run("processes", "create", "sh", "-c", script))["id"]
    with following(server, name, *options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(SECONDS) == 1
        assert process.stderr.read() == b"sandbox-agent: the output can't be written: Broken pipe\n"
    run("processes", "kill", name)


def test_output_that_was_dropped_is_an_error_unless_gaps_are_allowed(run: Run) -> None:
    before = result(run("processes", "config", "get"))
    changed = result(run("processes", "config", "set", "--max-log-bytes-per-process", "65536"))
    assert changed == {**before, "maxLogBytesPerProcess": 65_536}
    script = "for i in $(seq 100); do head -c 4096 /dev/zero; echo; done"
    name = result(run("processes", "create", "sh", "-c", script))["id"]
    run("processes", "logs", name, "--follow", "--allow-gaps")  # it has ended
    assert "dropped" in run("processes", "logs", name, "--follow", "--since", "1", code=66).stderr
    first = run("processes", "logs", name, "--follow", "--since", "1", "--allow-gaps").stdout.splitlines()[0]
    assert json.loads(first)["sequence"] > 2
    shown = run("processes", "logs", name, "--since", "1", "--raw")
    assert "dropped" in shown.stderr
    restored = before["maxLogBytesPerProcess"]
    run("processes", "config", "set", "--max-log-bytes-per-process", str(restored))


def test_agents_are_listed_and_their_options_shown(run: Run) -> None:
    agents = result(run("agents", "list"))["agents"]
    assert {"mock", "claude"} <= {agent["id"] for agent in agents}
    assert result(run("agents", "get", "mock"))["installed"] is True
    assert result(run("agents", "get", "mock", "--config"))["configOptions"][0]["id"] == "mode"
    assert result(run("agents", "models", "mock")) == {
        "currentValue": "mock",
        "values": [{"value": "mock", "name": "Mock"}, {"value": "mock-fast", "name": "Mock Fast"}],
    }
    assert [mode["value"] for mode in result(run("agents", "modes", "mock"))["values"]] == [
        "default",
        "acceptEdits",
        "plan",
    ]
    assert result(run("agents", "thought-levels", "mock"))["currentValue"] == "medium"
    assert "broken are not known" in run("agents", "models", "broken", code=1).stderr
    assert run("agents", "get", "unknown-agent", code=64).stderr.count("\n") == 1


def test_the_report_has_the_options_of_all_agents(run: Run, server: ServerProcess) -> None:
    report = result(run("agents", "report"))
    assert (report["endpoint"], report["generatedAtMs"] > 0) == (server.url, True)
    mock = next(agent for agent in report["agents"] if agent["id"] == "mock")
    assert (mock["installed"], mock["models"]["currentValue"]) == (True, "mock")
    assert mock["thoughtLevels"]["values"][0] == {"value": "low", "name": "Low"}
    # The members that the published command writes of each agent:
    claude = next(agent for agent in report["agents"] if agent["id"] == "claude")
    assert set(claude) >= {"id", "installed", "models", "modes", "thoughtLevels"}


def test_an_agent_is_installed(run: Run) -> None:
    assert result(run("agents", "install", "mock"))["already_installed"] is True
    assert "unknown-agent" in run("agents", "install", "unknown-agent", code=64).stderr


def test_mcp_servers_of_a_folder_are_configured(run: Run, tmp_path: Path) -> None:
    folder = str(tmp_path)
    server = {"type": "local", "command": "search", "args": ["-v"], "env": {"KEY": "value"}}
    run("config", "mcp", "set", folder, "search", "--json", json.dumps(server))
    assert result(run("config", "mcp", "get", folder, "search")) == server
    remote = {"type": "remote", "url": "http://127.0.0.1:1/mcp"}
    run("config", "mcp", "set", folder, "other", "--json-file", "-", stdin=json.dumps(remote))
    assert result(run("config", "mcp", "get", folder, "other")) == remote
    run("config", "mcp", "delete", folder, "search")
    assert run("config", "mcp", "get", folder, "search", code=66).stderr.count("\n") == 1
    for wrong in ('{"type": "other"}', "[1]", "{", '{"type": "local"}'):
        failed = run("config", "mcp", "set", folder, "search", "--json", wrong, code=2)
        assert "--json" in failed.stderr
    assert run("config", "mcp", "set", folder, "search", code=2).stdout == ""


def test_skills_of_a_folder_are_configured(run: Run, tmp_path: Path) -> None:
    skills = {"sources": [{"type": "local", "source": str(tmp_path), "skills": ["one"]}]}
    (tmp_path / "skills.json").write_text(json.dumps(skills))
    run("config", "skills", "set", str(tmp_path), "mine", "--json-file", str(tmp_path / "skills.json"))
    assert result(run("config", "skills", "get", str(tmp_path), "mine")) == skills
    run("config", "skills", "delete", str(tmp_path), "mine")
    run("config", "skills", "get", str(tmp_path), "mine", code=66)
    run("config", "skills", "set", str(tmp_path), "mine", "--json", '{"sources": [{}]}', code=2)


def test_a_server_that_is_not_there_is_one_line(shell: Shell) -> None:
    done = shell.run("api", "processes", "list", "-e", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stderr.count("\n")) == (75, 1)


def test_no_token_is_sent_when_none_is_wanted(shell: Shell, tmp_path: Path) -> None:
    token = "s3cret-token-0123456789"
    with our_server(tmp_path, token=token) as server:
        words = ("api", "processes", "list", "-e", server.url)
        assert shell.run(*words, env={"SANDBOX_AGENT_TOKEN": token}).returncode == 0
        done = shell.run(*words, "--no-token", env={"SANDBOX_AGENT_TOKEN": token})
        assert (done.returncode, token in done.stderr) == (77, False)


@pytest.mark.skipif(sys.platform != "linux", reason="the published server is a program for Linux")
def test_the_commands_work_with_the_published_server(shell: Shell, tmp_path: Path) -> None:
    with published_server(tmp_path) as server:

        def run(*words: str) -> Any:
            done = shell.run("api", *addressed(server, words))
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout) if done.stdout else None

        assert run("processes", "run", "echo", "hi")["stdout"] == "hi\n"
        process = run("processes", "create", "sh", "-c", "echo hi; read a")
        run("processes", "input", process["id"], "--data", "x\n")
        assert outputs(run("processes", "logs", process["id"])["entries"]) == b"hi\n"
        assert run("processes", "config", "get")["maxConcurrentProcesses"] == 64
        assert any(agent["id"] == "claude" for agent in run("agents", "list")["agents"])
        document = '{"type": "local", "command": "search", "args": []}'
        run("config", "mcp", "set", str(tmp_path), "search", "--json", document)
        assert run("config", "mcp", "get", str(tmp_path), "search")["command"] == "search"
