"""Shell completion, by the commands of the documentation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox_agent.cli.main import COMMANDS
from tests.cli.conftest import Shell
from tests.docs.pages import text_of
from tests.support.servers import put_launcher

EVAL = 'eval "$(_SANDBOX_AGENT_COMPLETE={}_source sandbox-agent)"'
FISH = "_SANDBOX_AGENT_COMPLETE=fish_source sandbox-agent > ~/.config/fish/completions/sandbox-agent.fish"


def completed(shell: Shell, line: str) -> list[str]:
    """Return what bash is given for a command line, whose last word is incomplete."""
    words = line.split(" ")
    env = {
        **shell.env,
        "_SANDBOX_AGENT_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    program = Path(sys.executable).with_name("sandbox-agent")
    done = subprocess.run([program], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [each.partition(",")[2] for each in done.stdout.splitlines()]


def test_commands_are_completed(shell: Shell) -> None:
    assert completed(shell, "sandbox-agent ") == list(COMMANDS)
    assert completed(shell, "sandbox-agent api p") == ["processes"]
    assert completed(shell, "sandbox-agent --ver") == ["--version"]


def test_options_and_their_values_are_completed(shell: Shell) -> None:
    assert completed(shell, "sandbox-agent server --log-f") == ["--log-format", "--log-file"]
    assert completed(shell, "sandbox-agent server --log-format ") == ["text", "json"]
    assert completed(shell, "sandbox-agent daemon start --up") == ["--upgrade"]


@pytest.mark.parametrize(
    "line",
    [
        "run --agent ",
        "chat -a ",
        "demo -a ",
        "search --agent ",
        "agents show ",
        "agents install claude ",
        "agents check ",
        "install-agent ",
        "api agents models ",
        "api sessions create name --agent ",
    ],
)
def test_ids_of_agents_are_completed(shell: Shell, line: str) -> None:
    put_launcher(shell.folder / "data", "my-agent", ["true"])
    assert {"mock", "claude", "codex", "my-agent"} <= set(completed(shell, f"sandbox-agent {line}"))
    assert completed(shell, f"sandbox-agent {line}my") == ["my-agent"]


def test_agents_of_an_invalid_file_are_left_out(shell: Shell) -> None:
    config = shell.folder / "config/sandbox-agent"
    config.mkdir(parents=True)
    (config / "agents.toml").write_text("x")
    shell.env["XDG_CONFIG_HOME"] = str(shell.folder / "config")
    assert completed(shell, "sandbox-agent agents show cla") == ["claude"]
    (config / "agents.toml").write_text('[own-agent]\ncommand = ["true"]\n')
    assert completed(shell, "sandbox-agent agents show own") == ["own-agent"]


def in_shell(shell: Shell, name: str, script: str) -> list[str]:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{shell.env['PATH']}"
    done = subprocess.run(
        [program, "-c", script],
        env={**shell.env, "PATH": path, "HOME": str(shell.folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes(shell: Shell) -> None:
    load = EVAL.format("bash")
    assert load in text_of("docs/cli.md")
    script = f"""{load}
        complete -p sandbox-agent >/dev/null
        COMP_WORDS=(sandbox-agent agents show cod) COMP_CWORD=3
        _sandbox_agent_completion sandbox-agent cod show
        echo "${{COMPREPLY[@]}}" """
    assert in_shell(shell, "bash", script) == ["codex"]


def test_zsh_completes(shell: Shell) -> None:
    load = EVAL.format("zsh")
    assert load in text_of("docs/cli.md")
    # What the function would show is caught instead.
    script = f"""autoload -Uz compinit; compinit -u -d ~/dump
        {load}
        [[ $_comps[sandbox-agent] == _sandbox_agent_completion ]] || exit 1
        _describe() {{ print -l -- ${{(P)3}} }}
        compdef() {{ }}
        words=(sandbox-agent agents show cod) CURRENT=4
        _sandbox_agent_completion"""
    assert in_shell(shell, "zsh", script)[0].startswith("codex:")


def test_fish_completes(shell: Shell) -> None:
    assert FISH in text_of("docs/cli.md")
    script = f"""mkdir -p ~/.config/fish/completions
        {FISH.replace("_SANDBOX", "env _SANDBOX")}
        complete -C "sandbox-agent agents show cod" """
    assert in_shell(shell, "fish", script)[0] == "codex"
