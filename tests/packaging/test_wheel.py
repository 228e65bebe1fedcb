"""What is built is what users get: the wheel, alone in a new environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, snippets
from tests.packaging.conftest import run, uv
from tests.support.servers import ServerProcess, free_port, our_server


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this source tree."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (wheel,) = built.glob("*.whl")
    return wheel


def new_environment(folder: Path, *requirements: str) -> Path:
    """Return the folder of programs of a new environment with these requirements only."""
    uv(["venv", "--python", sys.executable, folder / "venv"], cwd=folder)
    programs = folder / "venv/bin"
    uv(["pip", "install", "--python", programs / "python", *requirements], cwd=folder)
    return programs


@pytest.fixture(scope="module")
def base(pypi: None, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and no extra."""
    return new_environment(tmp_path_factory.mktemp("base"), str(wheel))


@pytest.fixture(scope="module")
def programs(pypi: None, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with what the sdist builds, and the extra for servers."""
    (sdist,) = built.glob("*.tar.gz")
    return new_environment(tmp_path_factory.mktemp("server"), f"{sdist}[server]")


def test_the_wheel_holds_the_package_its_types_and_its_license(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert modules <= set(names)
    assert {"sandbox_agent/py.typed", "sandbox_agent/agents/catalogue.toml"} <= set(names)
    assert "sandbox_agent/testing/agents/profiles.toml" in names
    locks = {f"{name}.json" for name in ("claude", "codex", "pi")} | {"hermes.txt", "deepagents.txt"}
    assert {f"sandbox_agent/agents/install/locks/{lock}" for lock in locks} <= set(names)
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


@pytest.mark.soak
def test_the_installed_types_are_complete(programs: Path, wheel: Path, tmp_path: Path) -> None:
    # the test kit's state machine is hypothesis's
    uv(["pip", "install", "--python", programs / "python", f"{wheel}[testing,cli]"], cwd=tmp_path)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"  # it looks at the first Python there
    command = (sys.executable, "-m", "pyright", "--verifytypes", "sandbox_agent", "--ignoreexternal")
    checked = run(*command, cwd=tmp_path, env={"PATH": path})
    assert "Type completeness score: 100%" in checked


WITHOUT_THE_SERVER = """
import asyncio, importlib.util, sys
assert not any(map(importlib.util.find_spec, ("starlette", "uvicorn", "jinja2", "markdown_it", "rich")))
import sandbox_agent
for name in sandbox_agent.__all__:
    getattr(sandbox_agent, name)
print(sandbox_agent.__version__)

async def main():
    try:
        async with sandbox_agent.SandboxAgent.connect(base_url=sys.argv[1]) as sdk:
            session = await sdk.create_session(agent="mock")
            print((await session.prompt("echo hello")).stop_reason)
    finally:
        try:
            sandbox_agent.local()
        except ImportError as error:
            print(error)

asyncio.run(main())
"""
NAMES_THE_EXTRA = 'pip install "sandbox-agent-py[server]"'


def test_the_sdk_works_without_any_extra(base: Path, tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        said = run(base / "python", "-c", WITHOUT_THE_SERVER, server.url, cwd=tmp_path).splitlines()
    assert said[0] == version("sandbox-agent-py")
    assert said[1] == "end_turn"
    assert NAMES_THE_EXTRA in said[2]


@pytest.mark.parametrize(
    "words", [("server",), ("server", "--help"), ("run", "--agent", "mock", "hello"), ("demo",)], ids=" ".join
)
def test_a_command_that_needs_the_server_names_the_extra(
    base: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [str(base / "sandbox-agent"), *words],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert NAMES_THE_EXTRA in done.stderr


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("sessions", "--help")], ids=" ".join)
def test_the_package_runs_as_a_module_without_any_extra(
    base: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    said = run(base / "python", "-m", "sandbox_agent", *words, cwd=tmp_path)
    assert said == run(base / "sandbox-agent", *words, cwd=tmp_path)
