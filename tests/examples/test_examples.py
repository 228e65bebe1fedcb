"""Examples that are programs, tests or a driver."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent import SessionPersistDriver
from sandbox_agent.testing.drivers import SessionPersistDriverSuite

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 60


def run(folder: Path, *command: str, **env: str) -> str:
    """Run a program of an example in a folder of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env={**os.environ, "COLUMNS": "120", **env},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def load(file: Path) -> Any:
    """Import a program of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_an_evaluation_prints_a_result_for_each_task(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "evaluation/evaluate.py"))
    assert "16 of 32 passed" in said
    assert said.count(" yes ") == said.count(" no ") == 16
    assert "100%" in said


def test_an_evaluation_continues_when_the_agent_fails_at_a_task(tmp_path: Path) -> None:
    tasks = [
        {"id": "a", "prompt": "sleep forever", "expected": "slept"},
        {"id": "b", "prompt": "echo [bold]", "expected": "[bold]"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    said = run(tmp_path, str(EXAMPLES / "evaluation/evaluate.py"), "mine.jsonl")
    assert "1 of 2 passed" in said
    assert "Invalid params" in said
    assert "[bold]" in said


def test_the_tests_of_an_app_pass(tmp_path: Path) -> None:
    folder = EXAMPLES / "testing"
    options = ("-p", "no:cacheprovider", "-p", "no:asyncio", "--rootdir", str(folder), "-c", os.devnull)
    said = run(tmp_path, "-B", "-m", "pytest", *options, str(folder))
    assert "3 passed" in said


@pytest.mark.anyio
class TestJsonLinesDriver(SessionPersistDriverSuite):
    """The driver of the example, under the suite of all drivers."""

    @pytest.fixture
    def driver(self, tmp_path: Path) -> SessionPersistDriver:
        driver: SessionPersistDriver = load(EXAMPLES / "custom_driver/json_lines.py").JsonLinesDriver(
            tmp_path
        )
        return driver


def test_a_driver_of_your_own_stores_a_session(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "custom_driver/json_lines.py"), TMPDIR=str(tmp_path))
    assert said.startswith("You said: hello")
    assert "events are in" in said


def test_a_session_in_postgresql_is_continued_by_another_process(tmp_path: Path, postgres_dsn: str) -> None:
    said = run(tmp_path, str(EXAMPLES / "postgres/shared_store.py"), DATABASE_URL=postgres_dsn)
    assert "first process:  You said: Remember the word orchid." in said
    assert "second process: You said: Which word?" in said
