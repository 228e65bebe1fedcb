"""The example with a container, with a real engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.engines import IMAGE, Engine

pytestmark = pytest.mark.sandboxes

EXAMPLE = Path(__file__).parents[2] / "examples/docker/contained.py"


def test_an_agent_works_in_a_container_on_a_folder_of_this_machine(
    docker_engine: Engine, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "notes.txt").write_text("of this machine")
    os.chown(folder, 1000, 1000)
    for parent in folder.parents[:3]:
        parent.chmod(0o755)  # pytest's folders are closed to others
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), str(folder), "echo hello"],
        env={**os.environ, "DOCKER_HOST": docker_engine.host, "IMAGE": IMAGE},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello\nfiles: notes.txt\n"
