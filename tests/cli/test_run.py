"""``sandbox-agent run``."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox_agent.cli.run import EXIT_CODES, OTHER_STOP
from tests.cli.conftest import COMMAND, SECONDS, Shell
from tests.cli.pseudo_terminals import Terminal, drawn, read_until
from tests.support.servers import free_port


def test_run_writes_words_to_stdout_and_deeds_to_stderr(shell: Shell) -> None:
    done = shell.run("run", "demo", "--agent", "mock", "--yes")
    assert done.returncode == 0
    assert done.stdout.startswith("Here is what an agent can say")
    assert "# Mock agent\n" in done.stdout
    assert "I wonder what the user wants of me.\n" in done.stderr
    assert "plan   [x] Read the request\n" in done.stderr
    assert "permission  Write hello.txt: allowed (--yes)\n" in done.stderr
    assert "tool   Write hello.txt: completed\n" in done.stderr
    assert "usage  1,234 of 200,000 tokens, 0.0125 USD\n" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_run_loses_nothing_when_the_agent_bursts(shell: Shell) -> None:
    done = shell.run("run", "burst 20000 10", "-a", "mock")
    assert done.returncode == 0
    assert [int(number) for number in re.findall(r"(\d{6}) xxx", done.stdout)] == list(range(1, 20_001))


def test_run_writes_envelopes_when_json_is_wanted(shell: Shell) -> None:
    done = shell.run("run", "echo hello", "-a", "mock", "--json")
    envelopes = [json.loads(line) for line in done.stdout.splitlines()]
    assert envelopes[0]["method"] == "session/prompt"
    assert envelopes[1]["params"]["update"]["content"]["text"] == "hello"
    assert envelopes[-1]["result"]["stopReason"] == "end_turn"


def test_run_rejects_a_permission_and_says_so_when_there_is_no_terminal(shell: Shell) -> None:
    done = shell.run("run", "permission", "-a", "mock")
    assert done.returncode == 0
    assert "rejected, no terminal to ask on (use --yes to allow)" in done.stderr
    assert "hello.txt is not written" in done.stdout


def test_run_shows_a_permission_after_what_came_before_it(shell: Shell) -> None:
    terminal = Terminal(shell, "run", "demo", "-a", "mock", "--yes", env={"NO_COLOR": "1"})
    _, shown = terminal.end()
    text = shown.decode().replace("\r\n", "\n")
    before, _, after = text.partition("permission  Write hello.txt: allowed (--yes)\n")
    assert before.startswith("Here is what an agent can say: text, and next")
    assert before.endswith("The plan is done.\ntool   Write hello.txt: pending\n")
    assert after.startswith("tool   Write hello.txt: in_progress\n")


def test_run_takes_the_prompt_from_standard_input(shell: Shell) -> None:
    assert shell.run("run", "-", "-a", "mock", stdin="echo piped").stdout == "piped\n"


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "\ufffd é"), ("ascii", "? ?")])
def test_run_writes_text_that_the_output_can_not_encode(shell: Shell, encoding: str, shown: str) -> None:
    # A byte of the command line that is not UTF-8 becomes a lone surrogate, which the mock says back.
    env = {"PYTHONUTF8": "1", "PYTHONIOENCODING": encoding}
    done = shell.run("run", "echo \udcff é", "-a", "mock", "--store", "sqlite:s.db", env=env)
    assert (done.returncode, done.stdout) == (0, f"{shown}\n")
    [record] = json.loads(shell.run("sessions", "list", "--store", "sqlite:s.db", "--json").stdout)["items"]
    shown = shell.run("sessions", "show", record["id"], "--store", "sqlite:s.db", env=env).stdout
    assert "> echo ? " in shown  # what is no text of a chunk: replaced when it is written


def test_run_works_in_the_folder_and_with_the_settings_that_it_is_given(shell: Shell, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    settings = ["--model", "mock-fast", "--mode", "plan", "--thought-level", "high"]
    done = shell.run("run", "tool", "-a", "mock", "--cwd", work, *settings, "--store", "s.db", "--json")
    assert f'"{work}/hello.txt"' in done.stdout
    listed = json.loads(shell.run("sessions", "list", "--store", "s.db", "--json").stdout)
    (record,) = listed["items"]
    assert record["sessionInit"]["cwd"] == str(work)
    values = {option["id"]: option["currentValue"] for option in record["configOptions"]}
    assert values == {"model": "mock-fast", "mode": "plan", "thought_level": "high"}


@pytest.mark.parametrize(("reason", "code"), [*EXIT_CODES.items(), ("a_newer_reason", OTHER_STOP)], ids=str)
def test_run_exits_by_the_stop_reason(shell: Shell, reason: str, code: int) -> None:
    done = shell.run("run", reason, "-a", "claude")
    assert done.returncode == code
    assert done.stdout == f"{reason}\n"
    assert (f"stopped: {reason}" in done.stderr) == (reason != "end_turn")


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["x", "-a", "nobody"], 64, "unsupported agent: nobody"),
        (["x", "-a", "cursor"], 69, "put `cursor-agent-acp`"),
        (["x", "-a", "mock", "--model", "huge"], 64, "Allowed values: mock, mock-fast"),
        (["die 3", "-a", "mock"], 70, "exit code 3"),
        (["x", "-a", "mock", "--store", "."], 2, "is a directory"),
        (["x", "-a", "mock", "--store", "no.db"], 74, "is not an SQLite database"),
        (["x", "-a", "mock", "--cwd", "nowhere"], 2, "does not exist"),
        ([" ", "-a", "mock"], 2, "the prompt is empty"),
        (
            ["x", "-a", "mock", "--allow-host", "a.test"],
            2,
            "--allow-host needs --sandbox jail, docker or podman",
        ),
        (["x", "-a", "mock", "--keep"], 2, "--keep is for a container or a service"),
        (
            ["x", "-a", "mock", "--image", "a", "--sandbox", "cloudflare"],
            2,
            "--image is for --sandbox docker",
        ),
        (["x", "-a", "mock", "--sandbox", "cloudflare"], 1, "set CLOUDFLARE_SANDBOX_URL"),
        (["x"], 2, "Missing option '--agent'"),
    ],
    ids=str,
)
def test_run_says_in_one_line_what_is_wrong(shell: Shell, words: list[str], code: int, hint: str) -> None:
    (shell.folder / "no.db").write_text("this is a letter to a friend, not a database\n" * 100)
    done = shell.run("run", *words, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == code
    assert hint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_ctrl_c_cancels_the_turn(shell: Shell) -> None:
    with shell.start("run", "stream 10000 10", "-a", "mock", "--store", "s.db") as child:
        assert child.stdout is not None
        read_until(child.stdout.fileno(), b"000003")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=SECONDS)
    assert child.returncode == 130
    assert b"cancelling; press Ctrl-C again to end immediately" in said
    assert b"stopped: cancelled" in said
    (record,) = json.loads(shell.run("sessions", "list", "--store", "s.db", "--json").stdout)["items"]
    last = shell.run("sessions", "export", record["id"], "--store", "s.db").stdout.splitlines()[-1]
    assert json.loads(last)["payload"]["result"]["stopReason"] == "cancelled"


def test_a_second_ctrl_c_ends_an_agent_that_ignores_the_first(shell: Shell) -> None:
    with shell.start("run", "deaf", "-a", "claude") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        read_until(child.stdout.fileno(), b"deaf")
        child.send_signal(signal.SIGINT)
        read_until(child.stderr.fileno(), b"cancelling")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=SECONDS)
    assert child.returncode == 130
    assert b"ended immediately" in said
    shell.leftovers.wait()


def test_sigterm_ends_everything_at_once(shell: Shell) -> None:
    with shell.start("run", "deaf", "-a", "claude") as child:
        assert child.stdout is not None
        read_until(child.stdout.fileno(), b"deaf")
        child.terminate()
        child.communicate(timeout=SECONDS)
    assert child.returncode == 128 + signal.SIGTERM
    shell.leftovers.wait()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"y\n", b"Permission granted (allow_once)"),
        (b"maybe\nalways\n", b"Permission granted (allow_always)"),
        (b"n\n", b"Permission rejected"),
        (b"\x04", b"Permission rejected"),
    ],
)
def test_run_asks_for_a_permission_on_the_terminal(shell: Shell, answer: bytes, outcome: bytes) -> None:
    terminal = Terminal(shell, "run", "permission", "-a", "mock")
    terminal.until(b"[y]es / [a]lways / [n]o? ")
    terminal.type(answer)
    code, said = terminal.end()
    assert code == 0
    assert outcome in said


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([b"2\n", b"s, 3\n", b"\n"], b'"content":{"color":"#00f","sizes":["S","L"]}'),
        ([b"green\n\nred\n", b"\n", b"in oil\n"], b'"content":{"color":"#f00","note":"in oil"}'),
        ([b"\x04"], b'{"action":"decline"}'),
    ],
)
def test_run_asks_a_question_on_the_terminal(shell: Shell, answers: list[bytes], outcome: bytes) -> None:
    terminal = Terminal(shell, "run", "question", "-a", "mock")
    for prompt, answer in zip(
        [b"Color? ", b"commas)? ", b"(Anything else (optional).)? "], answers, strict=False
    ):
        terminal.until(prompt)
        terminal.type(answer)
    code, said = terminal.end()
    assert code == 0
    assert outcome in said


def test_run_colors_a_terminal_unless_no_color_is_set(shell: Shell) -> None:
    code, coloured = Terminal(shell, "run", "tool", "-a", "mock").end()
    assert code == 0
    assert b"\x1b[32mtool   Read hello.txt: completed" in coloured
    _, plain = Terminal(shell, "run", "tool", "-a", "mock", env={"NO_COLOR": "1"}).end()
    assert b"tool   Read hello.txt: completed" in plain
    assert b"\x1b" not in plain


def test_what_an_agent_says_does_not_steer_the_terminal(shell: Shell) -> None:
    _, said = Terminal(shell, "run", "escape", "-a", "claude").end()
    assert b"\x1b]" not in said
    assert b"red" in said
    assert shell.run("run", "escape", "-a", "claude").stdout == "\x1b]0;owned\x07red\n"


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_run_starts_nothing_when_the_store_is_away(shell: Shell, kind: str) -> None:
    store = f"{kind}://me:not-shown@127.0.0.1:{free_port()}/0"
    done = shell.run("run", "echo hello", "-a", "mock", "--store", store)
    assert done.returncode == 74
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "can't be reached" in line
    assert "then try again" in line
    assert "not-shown" not in line


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_run_continues_a_session_of_the_store(shell: Shell, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    store = ["--store", "s.db"]
    assert shell.run("run", "echo first", "-a", "mock", *store).returncode == 0
    first = session_id(shell.run("run", "echo second", "-a", "mock", *store).stderr)
    assert shell.run("run", "echo elsewhere", "-a", "mock", "--cwd", other, *store).returncode == 0
    done = shell.run("run", "echo third", "--continue", "--model", "mock-fast", *store)
    assert (done.returncode, done.stdout) == (0, "third\n")
    assert "restored  in a new agent session by replay" in done.stderr
    assert session_id(done.stderr) == first
    assert shell.run("run", "echo fourth", "--session", first, *store).returncode == 0
    shown = shell.run("sessions", "show", first, *store).stdout
    assert re.findall(r"^> echo (.*)$", shown, flags=re.MULTILINE) == ["second", "third", "fourth"]
    records = json.loads(shell.run("sessions", "list", "--json", *store).stdout)["items"]
    [record] = [record for record in records if record["id"] == first]
    assert {"model": "mock-fast"}.items() <= {
        option["id"]: option["currentValue"] for option in record["configOptions"]
    }.items()


def session_id(said: str) -> str:
    (found,) = re.findall(r"session (\S+) is stored in", said)
    return found


def test_a_session_moves_to_another_agent(shell: Shell) -> None:
    store = ["--store", "s.db"]
    first = session_id(shell.run("run", "echo first", "-a", "mock", *store).stderr)
    done = shell.run("run", "end_turn", "--session", first, "-a", "claude", *store)
    assert (done.returncode, done.stdout) == (0, "end_turn\n")
    assert "agent  claude, no longer mock" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["--continue"], 2, "--session and --continue need --store"),
        (["--session", "x"], 2, "--session and --continue need --store"),
        (["--session", "x", "--continue", "--store", "s.db"], 2, "pass --session or --continue, not both"),
        (["--continue", "--store", "s.db"], 64, "leave out --continue, or name a session with --session"),
        (["--session", "unknown", "--store", "s.db"], 66, "'unknown'"),
    ],
    ids=str,
)
def test_run_says_why_there_is_nothing_to_continue(
    shell: Shell, words: list[str], code: int, hint: str
) -> None:
    done = shell.run("run", "x", *words)
    assert done.returncode == code, done.stderr
    assert hint in done.stderr.splitlines()[-1]


def test_run_sends_files_as_the_agent_supports(shell: Shell) -> None:
    (shell.folder / "a b.txt").write_text("some text")
    (shell.folder / "dot.png").write_bytes(PNG)
    (shell.folder / "data.bin").write_bytes(b"\0\1")
    files = ["--file", "a b.txt", "-f", "dot.png", "-f", "data.bin"]
    done = shell.run("run", "echo seen", "-a", "mock", "--json", *files)
    text, image, other, prompt = json.loads(done.stdout.splitlines()[0])["params"]["prompt"]
    uri = f"file://{shell.folder}/"
    assert text["resource"] == {"uri": f"{uri}a%20b.txt", "mimeType": "text/plain", "text": "some text"}
    assert image == {"type": "image", "mimeType": "image/png", "data": base64.b64encode(PNG).decode()}
    assert (other["type"], other["uri"], other["size"]) == ("resource_link", f"{uri}data.bin", 2)
    assert prompt == {"type": "text", "text": "echo seen"}


def test_an_agent_that_accepts_no_images_gets_links(shell: Shell) -> None:
    (shell.folder / "dot.png").write_bytes(PNG)
    agent = Path(__file__).with_name("stopping_agent.py")
    own = ["-a", "own", "--agent-command", f"own={sys.executable} {agent}"]
    done = shell.run("run", "end_turn", *own, "--json", "-f", "dot.png")
    link, _ = json.loads(done.stdout.splitlines()[0])["params"]["prompt"]
    assert (link["type"], link["uri"]) == ("resource_link", f"file://{shell.folder}/dot.png")


def test_a_file_that_is_not_there_is_a_wrong_command_line(shell: Shell) -> None:
    done = shell.run("run", "x", "-a", "mock", "-f", "missing.txt")
    assert done.returncode == 2
    assert "'missing.txt' does not exist" in done.stderr


def test_run_sends_what_a_pipe_has_with_the_prompt(shell: Shell) -> None:
    done = shell.run("run", "echo explained", "-a", "mock", "--json", stdin="an error\n")
    given, prompt = json.loads(done.stdout.splitlines()[0])["params"]["prompt"]
    assert given["text"] == "<stdin>\nan error\n</stdin>"
    assert prompt["text"] == "echo explained"


def test_run_says_that_it_waits_for_standard_input(shell: Shell) -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "echo hello", "-a", "mock"],
        cwd=shell.folder,
        env=shell.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stderr is not None
        read_until(child.stderr.fileno(), b"reading standard input to its end")
        said, _ = child.communicate(timeout=SECONDS)
    assert (child.returncode, said) == (0, b"hello\n")


def test_run_sends_nothing_of_an_empty_input(shell: Shell) -> None:
    envelope = shell.run("run", "echo x", "-a", "mock", "--json", stdin="\n").stdout.splitlines()[0]
    assert len(json.loads(envelope)["params"]["prompt"]) == 1


def test_run_shows_what_a_permission_is_for(shell: Shell) -> None:
    terminal = Terminal(shell, "run", "permission", "-a", "mock", env={"NO_COLOR": "1"})
    shown = terminal.until(b"[n]o? ").decode()
    assert f"  file {shell.folder}/hello.txt" in shown
    assert "  -hello\r\n" in shown
    assert "  +hello, world\r\n" in shown
    terminal.type(b"n\n")
    assert terminal.end()[0] == 0


def test_run_asks_on_the_terminal_while_standard_input_is_a_pipe(shell: Shell) -> None:
    terminal = Terminal(shell, "run", "permission", "-a", "mock", stdin=b"some input")
    terminal.until(b"[n]o? ")
    terminal.type(b"y\n")
    code, said = terminal.end()
    assert code == 0
    assert b"Permission granted (allow_once)" in said


def test_run_draws_running_tools_and_the_plan_in_place_on_a_terminal(shell: Shell) -> None:
    terminal = Terminal(shell, "run", "demo", "-a", "mock")
    shown = terminal.until(b"[n]o? ")
    assert b"plan   [>] Pretend to work" in shown
    terminal.type(b"y\n")
    code, said = terminal.end()
    assert code == 0
    screen = drawn(shown + said)
    assert "tool   Write hello.txt: completed" in screen
    assert "plan   [x] Say that it is done" in screen
    # What was drawn in place is gone.
    assert not [line for line in screen if "pending" in line or "[>]" in line or "[ ]" in line]
    assert screen.index("plan   [x] Say that it is done") < screen.index("tool   Write hello.txt: completed")
    assert screen[-1] == "turn   1,000 in, 234 out (tokens)"


def test_run_ends_with_the_usage(shell: Shell) -> None:
    done = shell.run("run", "usage", "-a", "mock")
    assert done.stderr.splitlines()[-2:] == [
        "usage  1,234 of 200,000 tokens, 0.0125 USD",
        "turn   1,000 in, 234 out (tokens)",
    ]
