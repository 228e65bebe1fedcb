"""Running uv and what it installs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

SECONDS = 300


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output; its failure is the test's."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def uv(words: Sequence[str | Path], cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run uv with options that keep this checkout's settings out."""
    done = subprocess.run(
        [sys.executable, "-m", "uv", "--no-config", *map(str, words)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"uv {words}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def pypi(tmp_path_factory: pytest.TempPathFactory) -> None:
    """PyPI, or the index that stands in for it; without one the tests are skipped, loudly."""
    try:
        uv(["pip", "compile", "--no-cache", "-"], cwd=tmp_path_factory.mktemp("pypi"), stdin="platformdirs")
    except AssertionError as error:
        message = f"NOT TESTED: what users install (no package index: {str(error).splitlines()[-1]})"
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(message, stacklevel=1)
        pytest.skip(message)
