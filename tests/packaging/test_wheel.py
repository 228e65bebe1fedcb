"""What is built is what users get: the wheel, alone in a new environment."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, snippets
from tests.support.servers import ServerProcess, free_port

SECONDS = 300


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it wrote; its failure is the test's."""
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with the wheel and what it depends on, nothing else."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True, symlinks=True)
    programs = folder / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return programs


def test_the_wheel_holds_the_package_its_types_and_its_license(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert modules <= set(names)
    assert {"sandbox_agent/py.typed", "sandbox_agent/agents/catalogue.toml"} <= set(names)
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert [name for name in names if not name.startswith(("sandbox_agent/", "sandbox_agent_py-"))] == []


def test_the_installed_command_tells_its_version(programs: Path, tmp_path: Path) -> None:
    said = run(programs / "sandbox-agent", "--version", cwd=tmp_path)
    assert said.strip().endswith(
        run(
            programs / "python",
            "-c",
            "import importlib.metadata as m; print(m.version('sandbox-agent-py'))",
            cwd=tmp_path,
        ).strip()
    )


def test_the_installed_server_becomes_healthy_and_ends(programs: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [str(programs / "sandbox-agent"), "server", "--port", str(port)]
    server = ServerProcess(command, port=port, log=tmp_path / "server.log")
    server.start()
    assert server.stop() == 0


def test_the_readmes_program_runs_on_the_installed_package(programs: Path, tmp_path: Path) -> None:
    program = next(snippet for snippet in snippets(ROOT / "README.md") if snippet.language == "python")
    (tmp_path / "pasted.py").write_text(program.code)
    assert "Permission granted" in run(programs / "python", "pasted.py", cwd=tmp_path)
    assert (tmp_path / "sessions.db").is_file()


def test_the_installed_types_are_complete(programs: Path, wheel: Path, tmp_path: Path) -> None:
    # the test kit's state machine is hypothesis's
    run(programs / "python", "-m", "pip", "install", "--quiet", f"{wheel}[testing]", cwd=tmp_path)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"  # it looks at the first Python there
    command = (sys.executable, "-m", "pyright", "--verifytypes", "sandbox_agent", "--ignoreexternal")
    checked = run(*command, cwd=tmp_path, env={"PATH": path})
    assert "Type completeness score: 100%" in checked
