"""``sandbox-agent daemon unit``: units for systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Shell
from tests.docs.pages import ROOT, text_of

UNITS = ROOT / "src/sandbox_agent/cli/systemd"


@pytest.mark.parametrize("words", [(), ("--user",)])
def test_systemd_accepts_the_unit(shell: Shell, words: tuple[str, ...]) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = shell.run("daemon", "unit", *words).stdout
    assert text.count(f'ExecStart="{sys.executable}" -P -m sandbox_agent server\n') == 1
    path = shell.folder / "sandbox-agent.service"
    path.write_text(text)
    # --user needs a folder for the manager's socket.
    env = {**os.environ, "XDG_RUNTIME_DIR": str(shell.folder), "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(
        [analyze, "verify", "--man=no", *words, path], env=env, capture_output=True, text=True, timeout=60
    )
    # Others are the machine's own units.
    own = [line for line in done.stderr.splitlines() if "sandbox-agent" in line]
    assert (done.returncode, own) == (0, [])


def test_systemd_rates_the_unit_as_hardened(shell: Shell) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    command = [analyze, "security", "--offline=true", "--threshold=40", "--no-pager"]
    done = subprocess.run(
        [*command, UNITS / "sandbox-agent.service"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_the_page_shows_the_unit() -> None:
    shown = re.findall(r"```text\n(# /etc.*?)```", text_of("docs/deploy.md"), flags=re.DOTALL)
    assert shown == [(UNITS / "sandbox-agent.service").read_text()]


def test_the_program_of_the_unit_starts_the_server(shell: Shell) -> None:
    text = shell.run("daemon", "unit").stdout
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    program = line.removeprefix("ExecStart=").replace('"', "").split()
    done = subprocess.run([*program, "--help"], capture_output=True, text=True, cwd=Path("/"), timeout=60)
    assert done.stdout.startswith("Usage: sandbox-agent server ")
