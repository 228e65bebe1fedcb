"""If it isn't run it isn't documentation: every snippet of the README and the docs."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import anyio
import pytest

from sandbox_agent import SandboxAgent
from tests.docs.pages import NOT_RUN, PAGES, ROOT, Snippet, snippets
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio

# What the pages call the server; a test's listens elsewhere.
WRITTEN_URL = "http://127.0.0.1:2468"
WRITTEN_SOCKET = "/run/sandbox-agent.sock"
SECONDS = 60
ALL = [snippet for page in PAGES for snippet in snippets(page)]
SHELL = [snippet for snippet in ALL if snippet.language == "sh" and NOT_RUN not in snippet.flags]
PROGRAMS = [snippet for snippet in ALL if snippet.language == "python" and "asyncio.run(" in snippet.code]


def fragments() -> dict[Path, list[Snippet]]:
    """Return the Python snippets that are no programs, by page: they build on each other."""
    by_page: dict[Path, list[Snippet]] = defaultdict(list)
    for snippet in ALL:
        if snippet.language == "python" and snippet not in PROGRAMS:
            by_page[snippet.page].append(snippet)
    return dict(by_page)


def name_of(snippet: Snippet) -> str:
    return snippet.name


def run(command: list[str], folder: Path) -> str:
    """Run it in a folder of its own, with this environment's programs on PATH."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env.pop("SANDBOX_AGENT_STORE", None)
    done = subprocess.run(
        command,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("snippet", PROGRAMS, ids=name_of)
def test_a_program_of_the_docs_runs_when_it_is_pasted(snippet: Snippet, tmp_path: Path) -> None:
    program = tmp_path / "pasted.py"
    program.write_text(snippet.code)
    assert run([sys.executable, "-W", "error", str(program)], tmp_path).strip()


def test_the_readme_begins_with_a_program_of_ten_lines() -> None:
    first = next(snippet for snippet in snippets(ROOT / "README.md") if snippet.language == "python")
    assert first in PROGRAMS
    assert len([line for line in first.code.splitlines() if line.strip()]) == 10
    assert first.line + first.code.count("\n") <= 45


@pytest.mark.parametrize("page", list(fragments()), ids=lambda page: page.name)
async def test_the_python_of_a_page_runs_from_its_top_to_its_end(
    page: Path,
    docs_server: ServerProcess,
    docs_socket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    written = {WRITTEN_URL: docs_server.url, WRITTEN_SOCKET: str(docs_socket)}
    async with SandboxAgent.connect(base_url=docs_server.url) as sdk:
        names: dict[str, Any] = {
            "__name__": "docs",
            "sdk": sdk,
            "session": await sdk.create_session(agent="mock", permission_policy="allow_once"),
        }
        for snippet in fragments()[page]:
            with anyio.fail_after(SECONDS):
                await execute(snippet, written, names)


async def execute(snippet: Snippet, written: Mapping[str, str], names: dict[str, Any]) -> None:
    """Run a snippet, which may await, as if it stood in a coroutine; it names what ``written`` replaces."""
    source = snippet.code
    for there, here in written.items():
        source = source.replace(there, here)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: CodeType = compile(source, snippet.name, "exec", flags=flags, dont_inherit=True)
    result: object = eval(code, names)
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize("snippet", SHELL, ids=name_of)
def test_a_shell_snippet_runs_as_it_is_written(
    snippet: Snippet, docs_server: ServerProcess, tmp_path: Path
) -> None:
    source = snippet.code.replace(WRITTEN_URL, docs_server.url).replace("curl -s", "curl -sf")
    assert run(["bash", "-euo", "pipefail", "-c", source], tmp_path).strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_of_a_page_says_what_it_is(page: Path) -> None:
    for snippet in snippets(page):
        # tests/sandboxes run those for nginx (test_tls_proxy.py) and a Worker (test_cloudflare.py).
        # TypeScript is shown only beside the same in Python, which is run.
        assert snippet.language in {"python", "sh", "text", "js", "ts", "nginx"}, snippet.name
        assert snippet.language != "ts" or page.name == "typescript.md", snippet.name
        assert snippet.flags <= {NOT_RUN}, snippet.name
        assert not (snippet.language == "python" and snippet.flags), f"{snippet.name}: python is run"
